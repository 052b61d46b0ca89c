"""What people write in an optimizer, as they write it: `p` is the parameter, `g` its gradient, `s` a state, `lr` and `k` are
numbers of the group, `step` a 0-dim state."""

# One value for each element.
POINTWISE = """
p + g
p - 2 * g
3 - g
p * g
p / (g.abs() + 1)
1 / (p.abs() + 1)
p ** 2
p.pow(2)
p.abs() ** 0.5
p ** (1 / 3)
torch.exp(40 * p)
(p.abs() * 1e-40) ** (1 / 3)
(p.abs() * 3e37) ** (1 / 3)
2.0 ** p
torch.pow(p.abs(), g)
p.abs().pow(lr)
-p
abs(g)
torch.add(p, g, alpha=0.5)
p.sub(g, alpha=lr)
torch.rsub(p, g)
p.mul(g)
p.div(g.abs() + 1)
p.clamp(-9, 9).div(s, rounding_mode="floor")
torch.div(p.clamp(-9, 9), s, rounding_mode="trunc")
p.clamp(-9, 9) // 0.25
torch.floor_divide(p.clamp(-9, 9), 0.25)
torch.floor_divide(torch.round(p.clamp(-9, 9) * 10), 0.1)
(p * 0 + 1) // 0.1
p % 0.3
torch.remainder(p, 0.3)
p.fmod(0.3)
torch.fmod(p, g.abs() + 0.5)
torch.addcmul(p, g, s, value=0.5)
p.addcmul(g, g, value=-lr)
torch.addcdiv(p, g, s, value=-0.5)
p.addcdiv(g, s.sqrt() + 1)
p.lerp(g, 0.1)
torch.lerp(p, g, s)
torch.lerp(torch.zeros_like(g), g, 0.25)
p.lerp(weight=0.1, end=g)
g.square()
g.abs().sqrt()
(g.abs() + 1).rsqrt()
torch.rsqrt(g * g + 1)
torch.reciprocal(g.abs() + 1)
torch.hypot(p, g)
torch.exp(p)
p.exp2()
p.expm1()
torch.log(p.abs())
(p.abs() + 1).log2()
p.abs().log10()
p.abs().log1p()
torch.logaddexp(p, g)
torch.logaddexp2(p, g)
torch.xlogy(p.abs(), g.abs())
torch.special.xlog1py(p, g.abs())
torch.sigmoid(p)
torch.special.expit(p)
p.logit(eps=1e-6)
torch.tanh(p)
p.sinh()
p.cosh()
torch.sin(p)
p.cos()
p.tan()
torch.atan(g)
g.arctan()
torch.atan2(p, g)
torch.asin(p / 4)
torch.acos(p / 4)
p.asinh()
(p.abs() + 1).acosh()
torch.atanh(p / 4)
torch.erf(p)
p.erfc()
torch.lgamma(p.abs() + 1)
torch.sinc(p)
torch.special.ndtr(p)
torch.deg2rad(p)
F.relu(p)
p.relu()
F.relu6(p)
F.leaky_relu(p, 0.1)
F.elu(p)
F.celu(p, 0.5)
F.selu(p)
F.gelu(p.nan_to_num(posinf=2.0, neginf=-2.0))
F.gelu(p.clamp(-9, 9), approximate="tanh")
F.silu(p)
F.mish(p)
F.softplus(p)
F.softplus(p, beta=2.0, threshold=10.0)
F.logsigmoid(p)
F.softsign(p)
F.tanhshrink(p)
F.softshrink(p, 0.3)
F.hardshrink(p, 0.3)
F.hardtanh(p, -0.5, 0.5)
F.hardsigmoid(p)
F.hardswish(p)
F.threshold(p, 0.1, 20.0)
p.clamp(-1, 1)
p.clamp(min=-0.5)
p.clamp(max=lr)
torch.clamp(p, min=-k, max=k)
p.clamp(-s, s)
p.clip(-1.0, 1.0)
p.clamp_min(0.1)
torch.clamp_min(p, min=0.1)
p.clamp_min(min=s)
p.clamp_max(0.1)
torch.clamp_max(p, max=s)
torch.maximum(p, g)
torch.minimum(p, g)
p.maximum(s)
torch.max(p, g)
p.min(g)
torch.fmax(p, g)
p.fmin(g)
torch.sign(g)
g.sgn()
torch.signbit(p).float()
torch.copysign(p, g)
p.copysign(-1.0)
torch.heaviside(p, s)
p.floor()
torch.ceil(p)
p.round()
torch.round(p, decimals=1)
p.trunc()
p.fix()
torch.frac(p)
p.nan_to_num()
torch.nan_to_num(g, nan=0.5, posinf=1.0, neginf=-1.0)
torch.where(g > 0, p, g)
torch.where(p * g > 0, 1.0, 0.5)
p.where(g > 0, s)
torch.where(g == 0, p, 0.0)
torch.where(p > g, p, torch.zeros_like(p))
p.masked_fill(g < 0, 0.0)
torch.masked_fill(p, g.isnan(), lr)
(p > 0) * g
(p * g > 0).float()
(g > 0).to(g.dtype)
(g > 0).to(torch.float32) * lr
(g > 0).type_as(g)
(g >= 0).int() * 2 - 1
(p > 0).half()
g * (p * g > 0).to(g)
((p > 0) & (g > 0)).float()
((p > 0) | (g > 0)).float()
((p > 0) ^ (g > 0)).float()
(~(p > 0)).float()
torch.logical_and(p > 0, g < 1) * p
torch.logical_or(p > 0, g < 1) * p
torch.logical_not(p > 0) * p
torch.logical_xor(p > 0, g > 0) * p
torch.isnan(g).float()
g.isinf().float()
torch.isfinite(g).float()
torch.where(torch.isfinite(g), g, torch.zeros_like(g))
torch.isclose(p, g, atol=0.5) * p
(p != g).float() + (p == g).float()
p.gt(0) * 1.0
torch.le(p, g) * p
p.less(0.5) * g
((p > 0) == (g > 0)).float()
torch.eq(p.sign(), g.sign()) * p
torch.ones_like(p) - s
torch.full_like(p, 0.25) + p
g.float() * 2
g.to(torch.float32) + p
g.to(p.dtype)
p.bfloat16().float()
p.half().to(torch.float32) * 3
p.detach() * 2
p.clone() + g.contiguous()
p.data * 2
p.nan_to_num().clamp(-3, 3).long() * 0.5
+p
p * (1 - lr * k)
p - lr * g / (1 - 0.9 ** step)
p * torch.where(step > 5, lr, k)
p * torch.clamp(step / 10, max=1.0)
p * torch.tanh(lr) + math.pi
p * (step % 2)
p * torch.minimum(step / 10, torch.ones_like(step))
""".strip().splitlines()

# Numbers of the parameter.
SIZES = """
p / p.numel()
g / p.shape[0] ** 0.5
g * max(1, 2) / p.size(-1)
p * math.sqrt(2) / param.nelement()
torch.numel(p) * p
(p.shape[0] / p.shape[1]) ** 0.5 * g
p.shape.numel() * g
""".strip().splitlines()

# Sums, norms and the like, over all of a parameter, its rows or columns, or all but its first dimensions.
REDUCING = """
g / g.norm()
g / torch.norm(g)
g / g.norm(p=1)
g / g.norm(p=float("inf"))
g / g.norm(0)
g / g.norm(3)
g / torch.linalg.vector_norm(g)
g / torch.linalg.vector_norm(g, ord=1)
g / torch.linalg.vector_norm(g, ord=float("inf"), dim=-1, keepdim=True)
g / torch.linalg.norm(g)
g / g.norm(dim=1, keepdim=True)
g / torch.norm(g, p=2, dim=1, keepdim=True)
g / g.norm(2, dim=1).unsqueeze(1)
g * torch.dist(p, g)
g - g.mean()
g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)
g - g.mean(dim=list(range(1, g.dim())), keepdim=True)
g - g.mean(-1, keepdim=True)
g - g.mean(dim=1, keepdim=True)
g - g.mean(dim=0, keepdim=True)
g - g.mean(1)[:, None]
g - g.sum(1).unsqueeze(-1)
g - g.sum(dim=1).unsqueeze(1).expand_as(g)
g - g.mean(1).reshape(-1, 1)
g - g.mean(1).view(g.shape[0], 1)
g.view(g.size(0), -1).mean(1).view(-1, 1) * p
g * g.reshape(-1).norm()
g * torch.dot(g.view(-1), p.view(-1))
g * torch.dot(g.flatten(), p.flatten())
g * (g.flatten(1) * p.flatten(1)).sum(1)[:, None]
g * (p * g).sum()
g.sum(0) + p
g * g.amax()
g * g.abs().max()
g * g.min()
g * torch.max(g.abs())
g / g.abs().amax(dim=1, keepdim=True)
g / (g.std() + 1e-8)
g / g.std(dim=1, keepdim=True)
g * g.var()
g * g.var(unbiased=False)
g * torch.var(g, dim=0, keepdim=True, correction=0)
(g - torch.var_mean(g)[1]) / torch.var_mean(g)[0].sqrt()
(g - torch.std_mean(g, dim=1, keepdim=True)[1]) / torch.std_mean(g, dim=1, keepdim=True)[0]
g * (p * g > 0).sum()
g * (p * g > 0).float().mean()
g * (p * g > 0).to(g.dtype).mean().clamp_min(1e-3)
g * torch.count_nonzero(g > 0)
torch.where(torch.isfinite(g).all(), g, torch.zeros_like(g))
torch.where((g > 2).any(), p, g)
g * torch.nansum(g)
g * torch.nanmean(g)
torch.logsumexp(g, dim=1, keepdim=True) * p
torch.softmax(g, dim=-1)
F.softmax(g, dim=1) * p
F.normalize(g, dim=1)
F.cosine_similarity(g, p, dim=1, eps=1e-8).unsqueeze(1) * g
F.cosine_similarity(g.view(-1), p.view(-1), dim=0) * g
g * torch.where(g.norm() > 1, 1 / g.norm(), 1.0)
g * (p.norm() / g.norm()).clamp(0.0, 10.0)
g * torch.clamp(0.01 * p.norm() / (g.norm() + 1e-6), max=1.0)
g * (g * g).mean().sqrt().clamp(min=1.0)
g / torch.maximum(g.norm(dim=1, keepdim=True), torch.full_like(g, 0.1))
g / g.square().sum().sqrt()
g / (g.pow(2).mean(dim=(0, 1), keepdim=True) + 1e-8).sqrt()
torch.zeros_like(g) + g.sum() / g.numel()
(g - g.mean()) / math.sqrt(2) / g.shape[0]
g.squeeze() - g.mean(0)[None]
""".strip().splitlines()

# What has no kernel, and what the message says instead.
REFUSED = {
    "g.add_(p)": "add_ mutates its operand; a rule returns new values: write add",
    "torch.add(p, g, out=p)": "with out= or inplace=True mutates; a rule returns new values",
    "F.relu(g, inplace=True)": "with out= or inplace=True mutates; a rule returns new values",
    "g if g.sum() > 0 else p": "use torch.where",
    "g * g.norm().item()": "reads a tensor's value; compute with the tensor itself",
    "g * math.sqrt(lr)": "use torch's, as in torch.cos(x), torch.where",
    "torch.rand_like(g)": "take the keyword argument `noise`",
    "torch.empty_like(g)": "write torch.zeros_like",
    "g.double()": "give a state that dtype",
    "g.float_power(2)": "write **",
    "g @ p.T": "transposes run on tensors",
    "torch.matmul(g, g)": "products of matrices run on tensors",
    "g.sort().values": "sorting runs on tensors",
    "g.median() * g": "sorting runs on tensors",
    "g.cumsum(0)": "running sums run on tensors",
    "g.prod() * g": "a sum of logarithms",
    "g.max(dim=1, keepdim=True)[0] * g": "write amax(dim, keepdim=True)",
    "g.argmax(1, keepdim=True) * g": "write x == x.amax(dim, keepdim=True)",
    "g[0] * g": "None, : and ... may stand there",
    "g / g.norm(dim=1)": "reduce with keepdim=True, or unsqueeze",
    "g * torch.tensor(2.0)": "with numbers, not with Tensor",
    "g * g.norm('nuc')": "has no kernel; write elementwise=False",
    "g.mul(p, q=2)": "mul with q is not supported in a rule; leave it out",
    "torch.digamma(g)": "docs/operations.md lists those that are",
}
