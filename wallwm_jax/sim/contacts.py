"""Which bodies are the robot, which are the task, and who touches whom.

Bodies are matched by their number: several task bodies of Meta-World have no
name, and `right_hand` is the parent, not the child, of `hand`.
"""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Int64

FURNITURE = ("world", "tablelink", "RetainingWall", "mocap")
FREE, SLIDE, HINGE = 0, 2, 3  # MuJoCo's joint types (mjtJoint)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Body numbers of a compiled scene, by role.

    Attributes:
      hand: bool per body, the palm and everything below it.
      pads: numbers of the two finger pads.
      task: bool per body, what is neither robot nor furniture.
      movable: bool per body, the task bodies that some joint can move. The rest
        (the box around a button, the hole around a puck) is no object to act on.
      joints: numbers of the joints of task bodies.
    """

    hand: Bool[np.ndarray, "bodies"]
    pads: tuple[int, int]
    task: Bool[np.ndarray, "bodies"]
    movable: Bool[np.ndarray, "bodies"]
    joints: Int64[np.ndarray, "joints"]


def layout(model: Any) -> Layout:
    """Sorts the bodies of an `MjModel` with Meta-World's Sawyer in it."""
    robot = _below(model, [_root(model, model.body("hand").id)])
    names = [model.body(i).name for i in range(model.nbody)]
    task = ~robot & ~np.isin(names, FURNITURE)
    joints = np.flatnonzero(task[model.jnt_bodyid])
    return Layout(
        hand=_below(model, [model.body("right_hand").id]),
        pads=(model.body("leftpad").id, model.body("rightpad").id),
        task=task,
        movable=_below(model, model.jnt_bodyid[joints]),
        joints=joints,
    )


def touching(model: Any, data: Any, parts: Layout) -> tuple[bool, bool]:
    """Returns (the hand touches a movable task body, both pads touch the same one)."""
    pairs = _active_pairs(model, data)
    # Either of the two geoms of a contact may be the robot's: look at both orders.
    pairs = np.concatenate([pairs, pairs[:, ::-1]])
    pairs = pairs[parts.movable[pairs[:, 1]]]
    held = [set(pairs[pairs[:, 0] == pad, 1]) for pad in parts.pads]
    return bool(parts.hand[pairs[:, 0]].any()), bool(held[0] & held[1])


def _active_pairs(model: Any, data: Any) -> Int64[np.ndarray, "contacts 2"]:
    """Body numbers of the contacts that carry force (margins alone do not count)."""
    active = (data.contact.dist <= 0) | (data.contact.efc_address >= 0)
    geoms = data.contact.geom[active].reshape(-1, 2)
    return model.geom_bodyid[geoms].astype(np.int64)


def _root(model: Any, body: int) -> int:
    """The ancestor of `body` that stands directly in the world."""
    while model.body_parentid[body] != 0:
        body = int(model.body_parentid[body])
    return body


def _below(model: Any, roots: Any) -> Bool[np.ndarray, "bodies"]:
    """Bool per body: the roots and everything below them (parents come first in MuJoCo)."""
    inside = np.zeros(model.nbody, bool)
    inside[roots] = True
    for body in range(1, model.nbody):  # body 0, the world, is its own parent
        inside[body] |= inside[model.body_parentid[body]]
    return inside
