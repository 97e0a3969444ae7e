"""The Meta-World tasks we use, as data: words for captions and how to score them."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One Meta-World task.

    Attributes:
      name: Meta-World's name without its version suffix.
      instruction: the global language instruction.
      noun: what the captions call the task object.
      goal: where the object ends up, "" when the verb says it all.
      touches: progress counts only once the gripper has touched the object.
        False where there is nothing to touch.
      own_distance: the simulator reports no distance to the goal; take the one
        from the object to the goal position.
    """

    name: str
    instruction: str
    noun: str
    goal: str = ""
    touches: bool = True
    own_distance: bool = False


TASK_SPECS = (
    TaskSpec("reach", "reach the red goal", "red goal", touches=False),
    TaskSpec("button-press-topdown", "press the red button down", "red button"),
    TaskSpec("button-press", "press the red button", "red button"),
    TaskSpec("handle-press-side", "press the handle down", "handle"),
    TaskSpec("drawer-open", "open the drawer", "drawer"),
    TaskSpec("window-open", "open the window", "window handle"),
    TaskSpec("window-close", "close the window", "window handle"),
    TaskSpec("faucet-open", "open the faucet", "faucet"),
    TaskSpec("faucet-close", "close the faucet", "faucet"),
    TaskSpec("plate-slide", "slide the plate into the goal", "plate", "the goal"),
    TaskSpec("door-open", "open the door", "door", own_distance=True),
    TaskSpec("door-close", "close the door", "door"),
    TaskSpec("dial-turn", "turn the dial", "dial"),
    TaskSpec("coffee-pull", "pull the mug to the goal", "mug", "the goal"),
    TaskSpec("push", "push the puck to the goal", "puck", "the goal"),
    TaskSpec("pick-out-of-hole", "lift the puck out of the hole", "puck", "the goal"),
)

TASKS = tuple(task.name for task in TASK_SPECS)


def task_spec(name: str) -> TaskSpec:
    """The specification of a task.

    Raises:
      ValueError: the task is not in the table.
    """
    for task in TASK_SPECS:
        if task.name == name:
            return task
    raise ValueError(f"unknown task {name!r}; choose one of: {', '.join(TASKS)}")
