"""How sure a lag between two streams is, in nats.

For waves x, y (see sync_motion) of n independent samples the log-likelihood
ratio of "y(t + L) follows x(t)" against "they have nothing in common" is

    evidence(L) = -n/2 log(1 - r(L)^2)        r: correlation at lag L

so the votes of several cameras and channels simply add up, and each counts as
much as it is sure. Neighbouring samples resemble each other; n is corrected for
that (Bartlett).
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

MEMORY = 10  # steps over which a wave resembles itself
SHORTEST = 12  # steps in common that a correlation needs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Which lag fits two streams best.

    Attributes:
      curve: nats for each lag of -window..window.
    """

    curve: tuple[float, ...]

    @property
    def window(self) -> int:
        """Largest lag that was looked at, steps."""
        return len(self.curve) // 2

    @property
    def lag(self) -> int:
        """Steps by which the second stream is behind the first."""
        return int(np.argmax(self.curve)) - self.window

    @property
    def place(self) -> float:
        """The lag between steps: the top of the parabola through the best three.

        Clocks do not differ by whole steps. Counted in whole ones, a lag of 1.5
        would fall on 1 in one episode and on 2 in the next.
        """
        best = self.lag + self.window
        if not 0 < best < len(self.curve) - 1:
            return float(self.lag)
        before, top, after = self.curve[best - 1 : best + 2]
        bend = before - 2 * top + after
        return self.lag + (0.5 * (before - after) / bend if bend < 0 else 0.0)

    @property
    def contrast(self) -> float:
        """Nats at the best lag above the usual lag: what chance would give."""
        tried = [nats for nats in self.curve if nats > 0]
        return float(max(self.curve) - np.median(tried)) if tried else 0.0

    @property
    def margin(self) -> float:
        """Nats more than at any lag but the best and its two neighbours."""
        best = self.lag + self.window
        rivals = [n for i, n in enumerate(self.curve) if abs(i - best) > 1]
        return float(max(self.curve) - max(rivals, default=0.0))

    def near(self, place: float, reach: float) -> float:
        """The most nats within `reach` steps of a lag (lines between whole lags); 0 outside."""
        places = np.arange(-self.window, self.window + 1)
        ends = np.interp((place - reach, place + reach), places, self.curve, left=0.0, right=0.0)
        inside = np.abs(places - place) <= reach
        return float(max(ends.max(), np.max(self.curve, where=inside, initial=0.0)))

    def expecting(self, place: float, nats: float) -> "Comparison":
        """The comparison of somebody who held a lag likelier beforehand, by `nats`."""
        places = np.arange(-self.window, self.window + 1)
        prior = nats * np.maximum(0, 1 - np.abs(places - place)) * (np.array(self.curve) > 0)
        return Comparison(curve=tuple((np.array(self.curve) + prior).tolist()))

    def trouble(self, contrast: float, margin: float) -> str:
        """Why the lag cannot be trusted, given the nats it needs; "" when it can."""
        if self.contrast < contrast:
            return f"weak votes, {self.contrast:.1f} nats of {contrast}"
        if abs(self.lag) >= self.window:
            return f"best lag {self.lag:+d} is at the edge of the window"
        if self.margin < margin:
            return f"split votes, {self.margin:.1f} nats of {margin} between two lags"
        return ""


def correlations(
    x: Float[np.ndarray, "t a"], y: Float[np.ndarray, "t b"], window: int
) -> Float[np.ndarray, "lags a b"]:
    """r of every pair of columns at lags -window..window.

    Zero where fewer than half of the steps are in common: there, a chance
    agreement of a few steps would beat an honest one of all.
    """
    steps = min(len(x), len(y))
    rows = [_correlation(x[:steps], y[:steps], lag) for lag in range(-window, window + 1)]
    return np.stack(rows)


def _correlation(x: np.ndarray, y: np.ndarray, lag: int) -> np.ndarray:
    first, last = max(0, -lag), min(len(x), len(x) - lag)
    if last - first < max(SHORTEST, len(x) // 2):
        return np.zeros((x.shape[1], y.shape[1]))
    a, b = x[first:last], y[first + lag : last + lag]
    a, b = a - a.mean(0), b - b.mean(0)
    norms = np.sqrt(np.outer((a * a).sum(0), (b * b).sum(0)))
    return np.divide(a.T @ b, norms, out=np.zeros_like(norms), where=norms > 1e-12)


def evidence(
    x: Float[np.ndarray, "t a"], y: Float[np.ndarray, "t b"], r: Float[np.ndarray, "lags a b"]
) -> Float[np.ndarray, "lags a b"]:
    """Nats of the correlations `r` of x and y; see the module's text."""
    steps = min(len(x), len(y))
    alike = np.einsum("ka,kb->ab", _itself(x[:steps]), _itself(y[:steps]))
    independent = steps / np.maximum(1, 1 + 2 * alike)
    return -independent / 2 * np.log1p(-np.minimum(r**2, 0.998))


def _itself(signal: np.ndarray) -> np.ndarray:
    """Autocorrelation at lags 1..MEMORY."""
    signal = signal - signal.mean(0)
    power = np.maximum((signal**2).mean(0), 1e-12)
    reach = min(MEMORY, len(signal) // 4)
    rows = [(signal[:-k] * signal[k:]).mean(0) / power for k in range(1, reach + 1)]
    return np.array(rows).reshape(reach, signal.shape[1])


def likeness(
    x: Float[np.ndarray, "t a"], y: Float[np.ndarray, "t b"], lags: Int[np.ndarray, "a b"]
) -> Float[np.ndarray, "a b"]:
    """Share of the variance of x(t) that y(t + lag) explains without scaling it, each pair."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    shared = np.full(lags.shape, -np.inf)
    for lag in np.unique(lags):
        first, last = max(0, -lag), min(len(x), len(x) - lag)
        a, b = x[first:last], y[first + lag : last + lag]
        a, b = a - a.mean(0), b - b.mean(0)
        own = np.maximum((a * a).mean(0), 1e-12)[:, None]
        left = own + (b * b).mean(0) - 2 * (a.T @ b) / len(a)
        shared = np.where(lags == lag, 1 - left / own, shared)
    return shared
