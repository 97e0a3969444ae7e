"""What a compiled program communicates, read off its text.

    kind             bytes are those of
    all-gather       the result
    reduce-scatter   the operand; also where TPUs write it as an all-reduce of
                     which a slice is kept, one fusion called all-reduce-scatter
    all-reduce       the result
    others           the result

so a weight of n bytes that is gathered twice and whose gradient is scattered
counts n, n and n. Groups of one device are left out: nothing travels.

A collective is asynchronous if the chip computes meanwhile: a matrix product, a
kernel or a whole loop is scheduled after its start and before its end. A start
that its end follows at once, with norms or copies between them, is not. TPUs
write the two in three ways:

    all-gather-start .. all-gather-done    also async-start .. async-done
    call-start .. call-done                the collective is the called computation, on a SparseCore
    async-collective-start, a fusion ..    carried on by a product's fusion between them
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator

_DTYPE_BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8} | {
    f"{kind}{bits}": bits for kind in "suf" for bits in (4, 8, 16, 32, 64)
}
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_CALL = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_SHAPE = re.compile(rf"\b({'|'.join(_DTYPE_BITS)})\[([\d,]*)\]")
_CARRIES = re.compile(r" (?:fusion|async-start|call-start)\(")
_START = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = .* [\w\-]+-start\(")
_WORK = re.compile(
    r" (?:convolution|dot|while|conditional)\(|custom_call_target=\"(?:tpu_custom_call|__cublas)"
)
_CHANNEL = re.compile(r"channel_id=(\d+)")
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_IOTA = re.compile(r"replica_groups=\[\d+,(\d+)\]<=")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\].*?\{('[^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: see the table at the head of this file.
      bytes: per chip and time it runs.
      times: how often it runs, loops multiplied out.
      asynchronous: whether the chip computes between its start and its end.
      source: the operation of the traced program it came from.
    """

    kind: str
    bytes: int
    times: int
    asynchronous: bool
    source: str

    @property
    def total(self) -> int:
        """Bytes per chip and run of the program."""
        return self.bytes * self.times


def collective_bytes(hlo: str) -> dict[str, int]:
    """Bytes of each kind of collective, per chip and run; see `collectives_of`."""
    total: Counter[str] = Counter()
    for found in collectives_of(hlo):
        total[found.kind] += found.total
    return dict(total)


def asynchronous_share(found: list[Collective]) -> float:
    """Share of the bytes whose collective is asynchronous; 1 without any."""
    total = sum(c.total for c in found)
    return sum(c.total for c in found if c.asynchronous) / total if total else 1.0


def collectives_of(hlo: str) -> list[Collective]:
    """All collectives of a compiled program.

    Args:
      hlo: its text, in the order it is run. The body of a counted loop is taken
        as often as its condition says; of an asynchronous collective, whose
        result lists its operands too, the largest part is taken. One that is
        spread over several fusions counts once: they share its channel, source
        and size (the channel alone does not tell: inside `shard_map` all have
        channel 1), and their names tell that they belong together.
    """
    computations, entry = _computations(hlo)
    found: list[Collective] = []

    def visit(name: str, times: int) -> None:
        lines = computations.get(name, [])
        found.extend(_of_computation(lines, name, times, computations))
        for line in lines:
            loop = _WHILE.search(line)
            if loop:
                visit(loop[2], times * _trips(computations.get(loop[1], [])))
            elif " conditional(" in line or " call(" in line:
                for called in _called(line):
                    visit(called, times)

    visit(entry, 1)
    return found


def _of_computation(
    lines: list[str], name: str, times: int, computations: dict[str, list[str]]
) -> list[Collective]:
    """Collectives of one computation's own lines; each knows whether work goes on beside it."""
    here: dict[str, Collective] = {}
    places: dict[str, list[int]] = {}
    for i, line in enumerate(lines):
        for key, one in _of_line(line, name, times, computations):
            here[key] = one
            places.setdefault(key, []).extend((i, _end(lines, i)))
    work = [i for i, line in enumerate(lines) if _computes(line, computations)] if here else []
    return [
        dataclasses.replace(
            # A product's fusion may itself be where a collective that it carries is last seen.
            one,
            asynchronous=any(min(at) < i <= max(at) for i in work),
        )
        for one, at in zip(here.values(), places.values(), strict=True)
    ]


def _end(lines: list[str], start: int) -> int:
    """Where what begins in a line ends; in the same line, if it is no start."""
    name = _START.match(lines[start])
    if name is None:
        return start
    done = re.compile(rf"-done\(%?{re.escape(name[1])}[,)]")
    return next((i for i in range(start + 1, len(lines)) if done.search(lines[i])), start)


def _computes(line: str, computations: dict[str, list[str]]) -> bool:
    """Whether an instruction is a matrix product, a kernel, a loop or a call of these."""
    if _WORK.search(line):
        return True
    if " fusion(" not in line and " call(" not in line:
        return False
    return any(_computes(x, computations) for y in _called(line) for x in computations.get(y, []))


def _called(line: str) -> list[str]:
    """Computations that an instruction uses."""
    branches = [name.strip().lstrip("%") for x in _BRANCHES.findall(line) for name in x.split(",")]
    return _CALL.findall(line) + branches


def _of_line(
    line: str, inside: str, times: int, computations: dict[str, list[str]]
) -> Iterator[tuple[str, Collective]]:
    """(what makes it one, collective) of an instruction, fusions looked into."""
    match = _COLLECTIVE.search(line)
    if match and (group := _group(line)) != 1:
        scattered = match[2] == "all-reduce" and inside.startswith("all-reduce-scatter")
        kind = "reduce-scatter" if scattered else match[2]
        parts = list(_shape_bytes(match[1]))
        size = max(parts) if match[3] else sum(parts)
        if match[2] == "reduce-scatter":
            size = (min(parts) if match[3] else sum(parts)) * group
        source = re.search(r'op_name="([^"]*)"', line)
        yield line, Collective(kind, size, times, False, source[1] if source else "")
    if _CARRIES.search(line):
        for called in _CALL.findall(line):
            spread = "async" in called or "async" in line.split(" = ")[0]
            for part in computations.get(called, []):
                for _, one in _of_line(part, called, times, computations):
                    channel = _CHANNEL.search(part) if spread else None
                    shared = channel and f"{channel[1]} {one.source} {one.bytes}"
                    yield shared or line + part, one


def _group(line: str) -> int:
    """Devices in a group; 0 where the text does not say."""
    if listed := _LISTED.search(line):
        return listed[1].count(",") + 1
    if iota := _IOTA.search(line):
        return int(iota[1])
    if mesh := _MESH.search(line):
        sizes = dict(re.findall(r"('[^']*')=(\d+)", mesh[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'[^']*'", mesh[2]))
    return 0


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation by name, and the name of the entry."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in hlo.splitlines():
        head = _COMPUTATION.match(line)
        if head:
            lines = found[head[2]] = []
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    return found, entry


def _trips(condition: list[str]) -> int:
    """How often a loop runs: the one number its condition knows; 1 if it knows none."""
    bounds = re.findall(r"s32\[\]\S* constant\((\d+)\)", "\n".join(condition))
    return int(bounds[0]) if len(bounds) == 1 else 1


def _shape_bytes(text: str) -> Iterator[int]:
    """Bytes of every array shape in a piece of program text."""
    for dtype, sizes in _SHAPE.findall(text):
        bits = _DTYPE_BITS[dtype]
        for size in filter(None, sizes.split(",")):
            bits *= int(size)
        yield bits // 8
