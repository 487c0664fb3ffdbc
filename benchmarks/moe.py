"""Mixture of experts on a GPU, shaped as Qwen3-30B-A3B: held against a plain product in float32, then timed.

    python benchmarks/moe.py            times the shipped plans and torch._grouped_mm
    python benchmarks/moe.py --sweep    times other tiles too

Every figure is the median over replays of a graph that runs eight layers' worth of different routings over one layer's
weights (1.2 GB, more than any cache). One JSON line a figure.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from lib import recorded
from lib.shares import add_flags, compile_ahead
from torch import Tensor

from quire.kernels.triton.moe import FEW_TOKENS
from quire.kernels.triton.moe.few import FEW, moe_few
from quire.kernels.triton.moe.grouped import Plan, combine, down_of, gate_up_of, plan_for
from quire.kernels.triton.moe.product import Product
from quire.kernels.triton.moe.route import sort
from quire.ops.moe import MoeSpec, RouteSpec, route
from quire.ops.registry import OPS, load_providers

HIDDEN, INNER, EXPERTS, TOP_K = 2048, 768, 128, 8
ROUTINGS = 8
SPEC = MoeSpec(RouteSpec(EXPERTS, TOP_K, True, "bfloat16", "cuda"), HIDDEN, INNER, "bfloat16", "cuda")


@dataclass
class Share:
    """Which part of the variants this process only compiles; of 0 parts: it times all of them."""

    index: int = 0
    of: int = 0
    count: int = 0


SHARE = Share()


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def expected(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """In float32, each expert on its own tokens."""
    weights, ids = route(logits, SPEC.route)
    out = torch.zeros(x.shape, device=x.device)
    for expert in range(EXPERTS):
        token, slot = (ids == expert).nonzero(as_tuple=True)
        if len(token):
            gate, up = F.linear(x[token].float(), gate_up[expert].float()).chunk(2, -1)
            made = F.linear(F.silu(gate) * up, down[expert].float())
            out.index_add_(0, token, made * weights[token, slot, None])
    return out


def microseconds(run: Callable[[int], object]) -> float:
    """Median time of one of ROUTINGS calls `run(i)` within a recorded graph."""
    return recorded.microseconds([partial(run, i) for i in range(ROUTINGS)])


def report(what: str, tokens: int, time_us: float, read: float, flops: float) -> None:
    figures = {"what": what, "tokens": tokens, "us": round(time_us, 1), "TB/s": round(read / time_us / 1e6, 2)}
    print(json.dumps({**figures, "TFLOP/s": round(flops / time_us / 1e6, 1)}), flush=True)


def library(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """The same by torch._grouped_mm."""
    weights, ids = route(logits, SPEC.route)
    expert, order = ids.flatten().sort(stable=True)
    ends = torch.searchsorted(expert, torch.arange(1, EXPERTS + 1, device=x.device, dtype=torch.int32)).int()
    gate, up = torch._grouped_mm(x[order // TOP_K], gate_up.transpose(1, 2), ends).chunk(2, -1)
    made = torch._grouped_mm(F.silu(gate) * up, down.transpose(1, 2), ends)
    spread = torch.empty_like(made).index_copy_(0, order, made).view(len(x), TOP_K, HIDDEN)
    return torch.bmm(weights.to(x.dtype)[:, None], spread).squeeze(1)


class Case:
    """A number of tokens with ROUTINGS inputs, and what they must read and compute."""

    def __init__(self, tokens: int, gate_up: Tensor, down: Tensor) -> None:
        self.tokens, self.weights = tokens, (gate_up, down)
        self.inputs = [(normal(tokens, HIDDEN), normal(tokens, EXPERTS)) for _ in range(ROUTINGS)]
        distinct = [len(route(logits, SPEC.route)[1].unique()) for _, logits in self.inputs]
        self.distinct = sum(distinct) / ROUTINGS
        self.read = self.distinct * 2 * HIDDEN * INNER  # bytes of one of the three matrices of the chosen experts
        self.flops = 2 * tokens * TOP_K * HIDDEN * INNER
        self.want = expected(*self.inputs[0], *self.weights)

    def skipped(self) -> bool:
        """Whether another of the processes that compile ahead has this one."""
        SHARE.count += 1
        return SHARE.of > 0 and SHARE.count % SHARE.of != SHARE.index

    def check(self, what: str, got: Tensor) -> None:
        error = float((got.float() - self.want).norm() / self.want.norm())
        if not error < 0.01:
            print(json.dumps({"what": what, "tokens": self.tokens, "WRONG": error}), flush=True)

    def time(self, what: str, run: Callable[..., Tensor]) -> None:
        if self.skipped():
            return
        try:
            self.check(what, run(*self.inputs[0], *self.weights))
            if SHARE.of:
                return
            time = microseconds(lambda i: run(*self.inputs[i], *self.weights))
        except Exception as error:
            print(json.dumps({"what": what, "tokens": self.tokens, "FAILED": str(error)[:200]}), flush=True)
            return
        report(what, self.tokens, time, 3 * self.read, 3 * self.flops)

    def parts(self, plan: Plan, what: str, gate_up: bool = True, down: bool = True, rest: bool = False) -> None:
        """The time of each launch of a plan."""
        if self.skipped():
            return
        try:
            orders = [sort(logits, SPEC.route, plan.tile) for _, logits in self.inputs]
            acts = [
                gate_up_of(x, self.weights[0], o, SPEC, plan) for (x, _), o in zip(self.inputs, orders, strict=True)
            ]
            made = down_of(acts[0], self.weights[1], orders[0], SPEC, plan)
            self.check(what, combine(made, orders[0]))
            if SHARE.of:
                return
            if gate_up:
                time = microseconds(lambda i: gate_up_of(self.inputs[i][0], self.weights[0], orders[i], SPEC, plan))
                report(f"{what} gate_up {plan.gate_up}", self.tokens, time, 2 * self.read, 2 * self.flops)
            if down:
                time = microseconds(lambda i: down_of(acts[i], self.weights[1], orders[i], SPEC, plan))
                report(f"{what} down {plan.down}", self.tokens, time, self.read, self.flops)
            if rest:
                time = microseconds(lambda i: sort(self.inputs[i][1], SPEC.route, plan.tile))
                report(f"{what} sort", self.tokens, time, 0, 0)
                report(f"{what} combine", self.tokens, microseconds(lambda i: combine(made, orders[i])), 0, 0)
        except Exception as error:
            print(json.dumps({"what": f"{what} {plan}", "tokens": self.tokens, "FAILED": str(error)[:200]}), flush=True)


def sweep(case: Case) -> None:
    """Other tiles than the shipped ones."""
    if case.tokens <= FEW_TOKENS:
        sweep_few(case)
        return
    average = case.tokens * TOP_K // EXPERTS
    tall = [(64, 128, 4, 3), (128, 128, 8, 3), (64, 64, 4, 4), (128, 64, 8, 4)]
    wide = [(64, 64, 4, 4), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 4), (128, 128, 8, 2), (256, 64, 8, 3)]
    cuts = [(tile, True, False, tall) for tile in (16, 32, 64) if average <= 2 * tile]
    cuts += [(tile, False, halves, wide) for tile in (64, 128) for halves in (False, True) if average > tile // 4]
    for tile, swap, halves, products in cuts:
        if average > 8 * tile:
            continue
        for sizes in products:
            product = Product(*sizes)
            case.parts(Plan(tile, swap, product, product, tma=True, halves=halves), f"{tile} {swap} {halves}")


def sweep_few(case: Case) -> None:
    for n, k, warps in ((4, 512, 4), (4, 2048, 8), (2, 2048, 4), (16, 256, 4), (2, 2048, 2)):
        first = Product(n, k, warps)
        case.time(f"few gate_up {n} {k} {warps}", lambda *a, f=first: moe_few(*a, SPEC, (f, FEW[1])))
    for early in (False, True):
        for n, k, warps in ((2, 256, 4), (4, 256, 4), (8, 256, 4), (2, 256, 2), (1, 256, 1), (4, 256, 2)):
            second = Product(n, k, warps)
            what = f"few down {n} {k} {warps} {early}"
            case.time(what, lambda *a, s=second, e=early: moe_few(*a, SPEC, (FEW[0], s), e))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true", help="time other tiles too")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 4, 8, 64, 128, 256, 512, 1024, 2048, 8192])
    parser.add_argument("--sweep-tokens", type=int, nargs="*", default=[512])
    add_flags(parser)
    args = parser.parse_args()
    if args.share:
        SHARE.index, SHARE.of = args.share - 1, args.compile_ahead
    compile_ahead(args)
    if not torch.cuda.is_available():
        print("benchmarks/moe.py needs a GPU")
        return
    load_providers(["triton"])
    torch.manual_seed(0)
    gate_up, down = normal(EXPERTS, 2 * INNER, HIDDEN) * HIDDEN**-0.5, normal(EXPERTS, HIDDEN, INNER) * INNER**-0.5
    for tokens in args.tokens:
        case = Case(tokens, gate_up, down)
        provider = OPS["moe"].providers["triton"].function
        case.time("triton", lambda *a, p=provider: p(*a, SPEC))
        case.time("torch._grouped_mm", library)
        if tokens > FEW_TOKENS:
            case.parts(plan_for(tokens, SPEC), "shipped", rest=True)
        if args.sweep and tokens in args.sweep_tokens:
            sweep(case)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
