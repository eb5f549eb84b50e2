"""Geometry of windows that slide over two spatial dims: what convolutions and pools share.

In: attributes of a node. Out: output sizes, the border a window reads around the image, and the
pads that a model only names (`auto_pad`, `ceil_mode`).
Invariant: a `Window` is checked: kernel, strides and dilations are positive, pads are not negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: `ImportNode.attr`: (name, default) -> value.
AttributeReader = Callable[[str, Any], Any]


@dataclass(frozen=True, slots=True)
class Window:
    """A window over (height, width); `pads` are (top, left, bottom, right).

    Raises `ValueError` with the reason if a number makes no sense.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, count, least in (
            ("kernel", 2, 1), ("strides", 2, 1), ("dilations", 2, 1), ("pads", 4, 0)
        ):  # fmt: skip
            values = getattr(self, name)
            if len(values) != count or any(v < least for v in values):
                raise ValueError(
                    f"{name} {list(values)} must be {count} numbers of at least {least}"
                )

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns from the first tap to the last, both included."""
        (kh, kw), (dh, dw) = self.kernel, self.dilations
        return dh * (kh - 1) + 1, dw * (kw - 1) + 1

    def output(self, size: Sequence[int]) -> tuple[int, int]:
        """Output height and width over an image of `size`; below 1 where no window fits."""
        top, left, bottom, right = self.pads
        room = (size[0] + top + bottom - self.extent[0], size[1] + left + right - self.extent[1])
        return room[0] // self.strides[0] + 1, room[1] // self.strides[1] + 1

    def border(self, size: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Elements read (before, after) each dim of an image of `size`.

        The trailing border is what the last window reaches, which strides make less than the pad.
        """
        out: list[tuple[int, int]] = []
        for i, count in enumerate(self.output(size)):
            last = (count - 1) * self.strides[i] + self.extent[i] - 1 - self.pads[i]
            out.append((self.pads[i], max(last - (size[i] - 1), 0)))
        return tuple(out)

    def rows(self, first: int, end: int, height: int) -> tuple[int, int, int, int]:
        """What windows in rows first .. end - 1 of the output read of an image of `height` rows: the first row and
        the one after the last, and the rows of pad above and below that they reach into."""
        low = first * self.strides[0] - self.pads[0]
        high = (end - 1) * self.strides[0] - self.pads[0] + self.extent[0]
        return max(low, 0), min(high, height), max(-low, 0), max(high - height, 0)

    def overhang(self, size: Sequence[int]) -> tuple[int, int]:
        """Extra (bottom, right) pads that round the output size up instead of down (`ceil_mode`).

        A last window that would start beyond the image and its leading pad is dropped.
        """
        out: list[int] = []
        for i in (0, 1):
            room = size[i] + self.pads[i] + self.pads[2 + i] - self.extent[i]
            count = -(-room // self.strides[i]) + 1
            if (count - 1) * self.strides[i] >= size[i] + self.pads[i]:
                count -= 1
            out.append(max((count - 1) * self.strides[i] - room, 0))
        return out[0], out[1]


def window_of(attrs: Mapping[str, Any], kernel: Sequence[int]) -> Window:
    """The window of a canonical operator with attributes strides, dilations and pads."""
    strides, dilations, pads = (
        tuple(int(v) for v in attrs[name]) for name in ("strides", "dilations", "pads")
    )
    return Window(tuple(kernel), strides, dilations, pads)


def read_numbers(attr: AttributeReader, name: str, count: int, default: int) -> tuple[int, ...]:
    """A list attribute of `count` integers; `ValueError` if it has another length."""
    values = tuple(int(v) for v in attr(name, (default,) * count))
    if len(values) != count:
        raise ValueError(f"{name} {list(values)} must have {count} entries")
    return values


def read_auto_pad(attr: AttributeReader) -> str:
    """NOTSET, VALID, SAME_UPPER or SAME_LOWER."""
    mode = str(attr("auto_pad", "NOTSET") or "NOTSET")
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        raise ValueError(f"auto_pad {mode} is not one of NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    return mode


@dataclass(frozen=True, slots=True)
class Line:
    """A window along one dim: elements, step between windows, step between elements, pads."""

    kernel: int
    stride: int
    dilation: int
    before: int
    after: int


def read_lines(attr: AttributeReader, size: Sequence[int], kernel: Sequence[int]) -> list[Line]:
    """The window of an ONNX convolution or pool over an image of `size`, dim by dim.

    SAME_UPPER and SAME_LOWER pad so that the output has ceil(size / stride) elements, the odd one after or
    before. Raises `ValueError` with the reason.
    """
    dims = len(size)
    if len(kernel) != dims:
        raise ValueError(f"the kernel {list(kernel)} must have {dims} dims like the image")
    strides = read_numbers(attr, "strides", dims, 1)
    dilations = read_numbers(attr, "dilations", dims, 1)
    pads = list(read_numbers(attr, "pads", 2 * dims, 0))
    for name, values in (("kernel", kernel), ("strides", strides), ("dilations", dilations)):
        if any(v < 1 for v in values):
            raise ValueError(f"{name} {list(values)} must be {dims} numbers of at least 1")
    if any(v < 0 for v in pads):
        raise ValueError(f"pads {pads} must be {2 * dims} numbers of at least 0")
    mode = read_auto_pad(attr)
    if mode != "NOTSET":
        pads = [0] * (2 * dims)
    if mode.startswith("SAME"):
        for i in range(dims):
            reach = dilations[i] * (kernel[i] - 1) + 1
            total = max((-(-size[i] // strides[i]) - 1) * strides[i] + reach - size[i], 0)
            before = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[i], pads[dims + i] = before, total - before
    return [
        Line(int(kernel[i]), strides[i], dilations[i], pads[i], pads[dims + i]) for i in range(dims)
    ]


def read_window(attr: AttributeReader, size: Sequence[int], kernel: Sequence[int]) -> Window:
    """`read_lines` over one or two dims as a window; one dim becomes two with a height of 1."""
    return window_over(read_lines(attr, size, kernel))


def window_over(lines: Sequence[Line]) -> Window:
    """A window over two dims from those along one or two."""
    return lift(
        [x.kernel for x in lines],
        [x.stride for x in lines],
        [x.dilation for x in lines],
        [*(x.before for x in lines), *(x.after for x in lines)],
    )


def lift(
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int],
) -> Window:
    """A window over two dims from one over one or two: a missing height has a single row."""
    if len(kernel) == 1:
        pads = (0, pads[0], 0, pads[1])
        kernel, strides, dilations = (1, *kernel), (1, *strides), (1, *dilations)
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads))
