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
p.clamp(-9, 9) // 0.3
torch.floor_divide(p.clamp(-9, 9), 0.3)
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
""".strip().splitlines()
