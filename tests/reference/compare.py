"""When a computed value equals a stored one; README.md lists the rules."""

from collections.abc import Callable, Mapping

import numpy as np

Values = dict[str, np.ndarray]

# float32, the same formula, another order of summation
RELATIVE, ABSOLUTE = 1e-4, 1e-4
RELATIVE_AFTER_BACKWARD = 1e-3  # gradients, and the steps taken with them
ABSOLUTE_OUTPUT = 2e-5  # the outputs of a model
ABSOLUTE_FIGURE = 1e-6  # COCO's figures, computed in float64 from integers and counts
DIFFERING_PIXELS = 2e-3  # share of a map of ids where resized masks may tie


def compare(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]) -> list[str]:
    """One line for each key that differs: `key: what and by how much`. Empty where all are equal."""
    lines = []
    for key, stored in expected.items():
        if key not in actual:
            lines.append(f"{key}: no such value here")
            continue
        names = expected.get(f"{key.rpartition('/')[0]}/names") if key.endswith("~") else None
        difference = _rule(key, stored)(key, stored, np.asarray(actual[key]), names)
        if difference:
            lines.append(f"{key}: {difference}")
    lines += [f"{key}: no such published value" for key in actual if key not in expected]
    return lines


Names = np.ndarray | None
Rule = Callable[[str, np.ndarray, np.ndarray, Names], str | None]


def _rule(key: str, stored: np.ndarray) -> Rule:
    if key.endswith("~"):
        return _compare_statistics
    if key.endswith("/includes"):
        return _compare_contents
    if stored.dtype.kind == "U":
        return _compare_text
    if key.endswith("/ids"):
        return _compare_pixels
    if stored.dtype.kind in "iub" or key.endswith("/area"):
        return _compare_exactly
    return _compare_rounded


def tolerance(key: str) -> tuple[float, float]:
    """Relative and absolute tolerance of the floating-point value `key`."""
    case, section = key.split("/")[:2]
    if case == "coco_eval":
        return 0.0, ABSOLUTE_FIGURE
    backward = case == "train" or key.endswith("/grad") or section == "grad"
    output = section == "out" or case in ("hub", "hub_panoptic")
    return RELATIVE_AFTER_BACKWARD if backward else RELATIVE, ABSOLUTE_OUTPUT if output else ABSOLUTE


def _other_shape(shape: tuple[int, ...], actual: np.ndarray) -> str | None:
    return None if actual.shape == shape else f"shape {actual.shape}, published {shape}"


def _compare_statistics(key: str, stored: np.ndarray, actual: np.ndarray, names: Names) -> str | None:
    """`stored` is [2, ...]: the statistics, and how far each may deviate; `actual` is [...]."""
    statistic, allowed = stored
    other_shape = _other_shape(statistic.shape, actual)
    if other_shape:
        return other_shape
    excess = np.abs(actual - statistic) - allowed
    wrong = ~(excess <= 0)  # a NaN is wrong too
    if not wrong.any():
        return None
    worst = np.unravel_index(np.where(np.isnan(excess), np.inf, excess).argmax(), excess.shape)
    where = names[worst[0]] if names is not None else _index(worst)
    return (
        f"{wrong.sum()} of {wrong.size} statistics deviate, most at {where}: "
        f"{actual[worst]:.5g}, published {statistic[worst]:.5g} ± {allowed[worst]:.2g}"
    )


def _compare_contents(key: str, stored: np.ndarray, actual: np.ndarray, names: Names) -> str | None:
    missing = sorted(set(stored.tolist()) - set(actual.tolist()))
    return f"lacks {missing}" if missing else None


def _compare_text(key: str, stored: np.ndarray, actual: np.ndarray, names: Names) -> str | None:
    published, here = stored.tolist(), actual.tolist()
    if published == here:
        return None
    only_published = sorted(set(published) - set(here))
    only_here = sorted(set(here) - set(published))
    if not only_published and not only_here:
        return "the same entries in another order or number"
    return (
        f"{len(only_published)} entries are published only, as {only_published[:3]}, "
        f"{len(only_here)} here only, as {only_here[:3]}"
    )


def _compare_pixels(key: str, stored: np.ndarray, actual: np.ndarray, names: Names) -> str | None:
    other_shape = _other_shape(stored.shape, actual)
    if other_shape:
        return other_shape
    share = float((actual != stored).mean())
    return f"{share:.2%} of the pixels differ" if share > DIFFERING_PIXELS else None


def _compare_exactly(key: str, stored: np.ndarray, actual: np.ndarray, names: Names) -> str | None:
    other_shape = _other_shape(stored.shape, actual)
    if other_shape:
        return other_shape
    if stored.dtype.kind in "iub" and actual.dtype.kind not in "iub":
        return f"type {actual.dtype}, published {stored.dtype}"
    wrong = actual != stored
    if not wrong.any():
        return None
    first = tuple(np.argwhere(wrong)[0])
    return (
        f"{wrong.sum()} of {wrong.size} values differ, first at {_index(first)}: "
        f"{actual[first]}, published {stored[first]}"
    )


def _compare_rounded(key: str, stored: np.ndarray, actual: np.ndarray, names: Names) -> str | None:
    other_shape = _other_shape(stored.shape, actual)
    if other_shape:
        return other_shape
    relative, absolute = tolerance(key)
    published, here = stored.astype(np.float64), actual.astype(np.float64)
    allowed = absolute + relative * np.abs(published)
    distance = np.abs(here - published)
    wrong = ~(distance <= allowed)  # a NaN is wrong too
    if not wrong.any():
        return None
    ratio = np.where(np.isnan(distance), np.inf, distance / allowed)
    worst = np.unravel_index(ratio.argmax(), ratio.shape)
    return (
        f"{wrong.sum()} of {wrong.size} values differ, most at {_index(worst)}: {here[worst]:.7g}, "
        f"published {published[worst]:.7g}, difference {distance[worst]:.2g}, allowed {allowed[worst]:.2g}"
    )


def _index(position: tuple) -> str:
    return f"[{', '.join(str(int(i)) for i in position)}]"
