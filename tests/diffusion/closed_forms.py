"""Data whose ideal denoisers are known, and samplers in float64 from the formulas alone."""

import dataclasses

import numpy as np


def sample_snap(D, x, grid, sigma_in, heun=True, gamma=None, S_noise=1.0, eps=None):
    """Paper Table 1: dx/dsigma = (x - D / sigma_in) / sigma, and x sigma_in at the end."""
    N = len(grid) - 1
    for i in range(N):
        t, t_next = grid[i], grid[i + 1]
        if gamma is not None and gamma[i] > 0:
            t = grid[i] + gamma[i] * grid[i]
            x = x + np.sqrt(t**2 - grid[i] ** 2) * S_noise * eps(i)
        slope = (x - D(x, t) / sigma_in) / t
        x_next = x + (t_next - t) * slope
        if heun and t_next != 0:
            slope_next = (x_next - D(x_next, t_next) / sigma_in) / t_next
            x_next = x + (t_next - t) * (slope + slope_next) / 2
        x = x_next
    return sigma_in * x


def edm_algorithm_2(D, x, t, S_churn, S_tmin, S_tmax, S_noise, eps):
    """Karras et al. 2022, algorithm 2, line by line: (sample, [(point, level) of each call])."""
    N, calls = len(t) - 1, []

    def denoised(point, level):
        calls.append((point, level))
        return D(point, level)

    for i in range(N):
        gamma = min(S_churn / N, np.sqrt(2) - 1) if S_tmin <= t[i] <= S_tmax else 0.0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + np.sqrt(t_hat**2 - t[i] ** 2) * (S_noise * eps(i))
        d = (x_hat - denoised(x_hat, t_hat)) / t_hat
        x_next = x_hat + (t[i + 1] - t_hat) * d
        if t[i + 1] != 0:
            d_next = (x_next - denoised(x_next, t[i + 1])) / t[i + 1]
            x_next = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_next / 2)
        x = x_next
    return x, calls


def dpm_solver_2m(D, x, sigma, sigma_in):
    """Lu et al. 2022, algorithm 2, line by line: x of the data, alpha = 1 / sigma_in, sigma > 0.

    lambda is ln(alpha / sigma). The last level is 0, where lambda ends and D is the answer.
    """
    alpha, N = 1 / sigma_in, len(sigma) - 1
    lam = np.log(alpha / sigma[:-1])
    h = lam[1:] - lam[:-1]
    buffer = [D(x, sigma[0])]
    x = sigma[1] / sigma[0] * x - alpha * (np.exp(-h[0]) - 1) * buffer[0]
    for i in range(2, N):
        r = h[i - 2] / h[i - 1]
        buffer.append(D(x, sigma[i - 1]))
        D_i = (1 + 1 / (2 * r)) * buffer[-1] - 1 / (2 * r) * buffer[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha * (np.exp(-h[i - 1]) - 1) * D_i
    return D(x, sigma[N - 1])


@dataclasses.dataclass(frozen=True)
class Gaussians:
    """A mixture of normals in the plane."""

    weights: np.ndarray  # [k]
    means: np.ndarray  # [k, 2]
    covariances: np.ndarray  # [k, 2, 2]

    def denoiser(self, np_, sigma_in):
        """E[x | x / sigma_in + sigma eps] in NumPy's or JAX's precision, for points [n, 2]."""
        dtype = np.float64 if np_ is np else np.float32
        values, axes = (a.astype(dtype) for a in np.linalg.eigh(self.covariances))
        means, prior = self.means.astype(dtype), np.log(self.weights).astype(dtype)

        def D(y, sigma):
            # along the axes of each part: y - its mean, and the variance of y
            off = np_.einsum("nkd,kde->nke", y[:, None] - means[None] / sigma_in, axes)
            variance = (values / sigma_in**2 + sigma**2)[None]
            logits = prior[None] - np_.sum(off**2 / variance + np_.log(variance), axis=-1) / 2
            parts = np_.exp(logits - np_.max(logits, axis=1, keepdims=True))
            share = parts / np_.sum(parts, axis=1, keepdims=True)
            moved = np_.einsum("nke,kde->nkd", values[None] / sigma_in / variance * off, axes)
            return np_.sum(share[:, :, None] * (means[None] + moved), axis=1)

        return D

    def parts(self, x):
        """The probability that each point [n, 2] is from each part: [n, k]."""
        off = x[:, None] - self.means
        inverse, det = np.linalg.inv(self.covariances), np.linalg.det(self.covariances)
        density = np.exp(-np.einsum("nki,kij,nkj->nk", off, inverse, off) / 2) / np.sqrt(det)
        joint = self.weights * density
        return joint / joint.sum(axis=1, keepdims=True)

    def moments(self):
        """The mean and the covariance of the whole."""
        mean = self.weights @ self.means
        off = self.means - mean
        spread = self.covariances + off[:, :, None] * off[:, None, :]
        return mean, np.einsum("k,kde->de", self.weights, spread)


ONE = Gaussians(np.array([1.0]), np.array([[0.3, -0.2]]), np.array([[[0.5, 0.3], [0.3, 0.4]]]))
TWO = Gaussians(
    np.array([0.3, 0.7]),
    np.array([[-0.9, 0.4], [0.5, -0.2]]),
    np.array([[[0.04, 0.02], [0.02, 0.05]], [[0.06, -0.03], [-0.03, 0.04]]]),
)
