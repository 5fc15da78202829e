"""Zeroth-order methods as their papers write them, one number at a time, as oracles.

Each walks from 0 and returns its points, with the learning rate and the perturbation in the paper's
own units. They draw normal numbers in the order in which the fast class draws them.
"""

import math


def normal(rng, dim):
    return [float(rng.standard_normal()) for _ in range(dim)]


def along(x, factor, u):
    return [c + factor * w for c, w in zip(x, u, strict=True)]


def norm(u):
    return math.sqrt(sum(w * w for w in u))


def pair_gradient(f, x, u, eps):
    """(f(x + eps u) - f(x - eps u)) / (2 eps) u."""
    slope = (f(along(x, eps, u)) - f(along(x, -eps, u))) / (2 * eps)
    return [slope * w for w in u]


def mezo(f, rng, *, dim, steps, eta, eps):
    """Malladi et al. 2023, algorithm 1."""
    x, path = [0.0] * dim, []
    for _ in range(steps):
        g = pair_gradient(f, x, normal(rng, dim), eps)
        x = along(x, -eta, g)
        path.append(x)
    return path


def mezo_adam(f, rng, *, dim, steps, eta, eps, beta1, beta2, added):
    """The same gradients through Kingma and Ba 2015, algorithm 1."""
    x, path = [0.0] * dim, []
    m, v = [0.0] * dim, [0.0] * dim
    for t in range(1, steps + 1):
        g = pair_gradient(f, x, normal(rng, dim), eps)
        for i in range(dim):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
        x = [
            x[i] - eta * (m[i] / (1 - beta1**t)) / (math.sqrt(v[i] / (1 - beta2**t)) + added)
            for i in range(dim)
        ]
        path.append(x)
    return path


def fzoo(f, rng, *, dim, steps, eta, eps, n):
    """arXiv:2506.09034: random signs, g = 1/(eps N) sum (l_i - l_0) u_i, x -= eta g / s."""
    x, path = [0.0] * dim, []
    for _ in range(steps):
        signs = [[1.0 if w > 0 else -1.0 for w in normal(rng, dim)] for _ in range(n)]
        losses, base = [f(along(x, eps, u)) for u in signs], f(x)
        mean = sum(losses) / n
        s = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / (n - 1))
        for u, loss in zip(signs, losses, strict=True):
            x = along(x, -eta / s * (loss - base) / (eps * n), u)
        path.append(x)
    return path


def zo_adamm(f, rng, *, dim, steps, eta, eps, q, beta1, beta2):
    """Chen et al. 2019, algorithm 1 with q directions, no constraint, eta / sqrt(t), v_0 = 0."""
    x, path = [0.0] * dim, []
    m, v, highest = [0.0] * dim, [0.0] * dim, [0.0] * dim
    for t in range(1, steps + 1):
        g = [0.0] * dim
        for _ in range(q):
            u = normal(rng, dim)
            g = along(g, (f(along(x, eps, u)) - f(x)) / (eps * q), u)
        for i in range(dim):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            highest[i] = max(highest[i], v[i])
        x = [x[i] - eta / math.sqrt(t) * m[i] / math.sqrt(highest[i]) for i in range(dim)]
        path.append(x)
    return path


def r_adazo(f, rng, *, dim, steps, eta, mu, k, beta1, beta2, added):
    """arXiv:2502.01014: unit sphere, factor d, and v averages the squares of m."""
    x, path = [0.0] * dim, []
    m, v = [0.0] * dim, [0.0] * dim
    for _ in range(steps):
        g = [0.0] * dim
        for _ in range(k):
            u = normal(rng, dim)
            u = [w / norm(u) for w in u]
            g = along(g, dim / k * (f(along(x, mu, u)) - f(x)) / mu, u)
        for i in range(dim):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * m[i] ** 2
        x = [x[i] - eta * m[i] / (math.sqrt(v[i]) + added) for i in range(dim)]
        path.append(x)
    return path


def lozo(f, rng, *, m, n, matrices, steps, eta, eps, r, nu):
    """arXiv:2410.07698, algorithm 1: slope along U V' times U V' / r; V lasts nu steps."""
    dim = matrices * m * n
    x, path = [0.0] * dim, []
    for t in range(steps):
        if t % nu == 0:
            v = [[normal(rng, r) for _ in range(n)] for _ in range(matrices)]
        u = [[normal(rng, r) for _ in range(m)] for _ in range(matrices)]
        product = [
            sum(a * b for a, b in zip(u[k][i], v[k][j], strict=True))
            for k in range(matrices) for i in range(m) for j in range(n)
        ]  # fmt: skip
        slope = (f(along(x, eps, product)) - f(along(x, -eps, product))) / (2 * eps)
        x = along(x, -eta * slope / r, product)
        path.append(x)
    return path


def lozo_m(f, rng, *, m, n, matrices, steps, eta, eps, r, nu, beta):
    """arXiv:2410.07698, algorithm 2: x -= eta N V' / r, N of (m, r) brought from V to V."""
    dim = matrices * m * n
    x, path = [0.0] * dim, []
    momentum = [[[0.0] * r for _ in range(m)] for _ in range(matrices)]
    v = [[[0.0] * r for _ in range(n)] for _ in range(matrices)]
    for t in range(steps):
        if t % nu == 0:
            old, v = v, [[normal(rng, r) for _ in range(n)] for _ in range(matrices)]
            for k in range(matrices):
                turn = [
                    [sum(old[k][j][a] * v[k][j][b] for j in range(n)) / n for b in range(r)]
                    for a in range(r)
                ]
                momentum[k] = [
                    [sum(row[a] * turn[a][b] for a in range(r)) for b in range(r)]
                    for row in momentum[k]
                ]
        u = [[normal(rng, r) for _ in range(m)] for _ in range(matrices)]
        product = [
            sum(a * b for a, b in zip(u[k][i], v[k][j], strict=True))
            for k in range(matrices) for i in range(m) for j in range(n)
        ]  # fmt: skip
        slope = (f(along(x, eps, product)) - f(along(x, -eps, product))) / (2 * eps)
        for k in range(matrices):
            for i in range(m):
                for a in range(r):
                    kept = beta * momentum[k][i][a]
                    momentum[k][i][a] = kept + (1 - beta) * slope * u[k][i][a]
        moved = [
            sum(a * b for a, b in zip(momentum[k][i], v[k][j], strict=True)) / r
            for k in range(matrices) for i in range(m) for j in range(n)
        ]  # fmt: skip
        x = along(x, -eta, moved)
        path.append(x)
    return path
