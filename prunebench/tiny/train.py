"""Make the weights of the embedded model: `python -m prunebench.tiny.train`.

Trains a small Qwen2 from scratch on worked solutions of the training split. Besides the last
layer, the late intermediate layers are trained to predict the next token too (through the same
final norm and output matrix), so that what the model believes can be read from the keys and
values that the layers above make of them.

Data-parallel over one-thread processes, bf16 matrix products, fused by torch.compile. A step's
data depend on (seed, step, worker) only, so an interrupted run continues with the same text.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from prunebench.tiny import task
from prunebench.tiny.tokenizer import build_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
ROW = 320  # tokens in a training row
ROWS = 16  # rows per worker and step
LATE_LAYERS, LATE_WEIGHT = 3, 0.3  # intermediate layers with a loss of their own
MARK_WEIGHT = 2.0  # loss weight of the self-check marks
WARMUP, DECAY = 100, 0.3  # steps; share of the steps at the end with a falling learning rate


def new_model(seed: int) -> Qwen2ForCausalLM:
    """The untrained model: 6 layers, 128 wide, 4 heads of 32 with keys and values of their own."""
    torch.manual_seed(seed)
    tokenizer: Any = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def draw_rows(rng: random.Random, encode: dict[str, int], end: int) -> tuple[Tensor, ...]:
    """One worker's data for one step.

    Returns
    -------
    tokens : `(ROWS, ROW + 1)` solutions of random training problems, end to end.
    document : `(ROWS, ROW + 1)` which solution a token belongs to.
    weight : `(ROWS, ROW + 1)` loss weight of predicting each token.
    """
    tokens, document, weight = [], [], []
    for _ in range(ROWS):
        ids: list[int] = []
        docs: list[int] = []
        weights: list[float] = []
        while len(ids) < ROW + 1:
            question, _ = task.draw_problem(rng, task.TRAINING)
            if task.split_of(question) != "train":
                continue
            start = len(ids)
            ids += [encode[c] for c in question + "\n"]
            weights += [0.0] * (len(ids) - start)
            for text, learn in task.write_solution(question, rng):
                mark = text[0] in task.RIGHT + task.WRONG
                ids += [encode[c] for c in text]
                weights += [MARK_WEIGHT if mark else float(learn)] + [float(learn)] * (
                    len(text) - 1
                )
            ids.append(end)
            weights.append(1.0)
            docs += [start] * (len(ids) - start)
        tokens.append(ids[: ROW + 1])
        document.append(docs[: ROW + 1])
        weight.append(weights[: ROW + 1])
    return torch.tensor(tokens), torch.tensor(document), torch.tensor(weight)


def make_loss(model: Qwen2ForCausalLM):
    """The training loss as one function of (tokens, document, weight), for torch.compile."""
    config, low = model.config, torch.bfloat16
    body: Any = model.model
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    cos, sin = (
        table.to(low)[:, None] for table in body.rotary_emb(torch.zeros(1), torch.arange(ROW)[None])
    )
    causal = torch.ones(ROW, ROW, dtype=torch.bool).tril()
    n_layers = config.num_hidden_layers
    layer_weight = {n_layers - 1 - k: LATE_WEIGHT for k in range(1, LATE_LAYERS + 1)}
    layer_weight[n_layers - 1] = 1.0

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        x = x.float()
        variance = x.pow(2).mean(-1, keepdim=True)
        return (x * torch.rsqrt(variance + config.rms_norm_eps) * scale).to(low)

    def linear(x: Tensor, layer: Any) -> Tensor:
        bias = None if layer.bias is None else layer.bias.to(low)
        return F.linear(x, layer.weight.to(low), bias)

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat((-second, first), -1) * sin

    def attend(x: Tensor, attention: Any, bias: Tensor) -> Tensor:
        query, key, value = (
            linear(x, projection).view(ROWS, ROW, heads, size).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        scores = (rotate(query) @ rotate(key).transpose(-1, -2)).float() * size**-0.5
        mixed = torch.softmax(scores + bias, -1).to(low) @ value
        return linear(mixed.transpose(1, 2).reshape(ROWS, ROW, heads * size), attention.o_proj)

    def loss(tokens: Tensor, document: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        own, target = document[:, :-1], tokens[:, 1:].flatten()
        weight = (weight[:, 1:] * (own == document[:, 1:])).flatten()
        visible = causal & (own[:, None, :] == own[:, :, None])
        bias = torch.where(visible, 0.0, -1e9)[:, None]
        x = F.embedding(tokens[:, :-1], body.embed_tokens.weight).to(low)
        total = last = torch.zeros(())
        for index, layer in enumerate(body.layers):
            x = x + attend(norm(x, layer.input_layernorm.weight), layer.self_attn, bias)
            h = norm(x, layer.post_attention_layernorm.weight)
            gated = F.silu(linear(h, layer.mlp.gate_proj)) * linear(h, layer.mlp.up_proj)
            x = x + linear(gated, layer.mlp.down_proj)
            if index in layer_weight:
                logits = linear(norm(x, body.norm.weight), model.lm_head).float()
                each = F.cross_entropy(logits.flatten(0, 1), target, reduction="none")
                last = (each * weight).sum() / weight.sum()
                total = total + layer_weight[index] * last
        return total, last

    return loss


def make_optimizers(model: Qwen2ForCausalLM, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, norms and biases."""
    inner = [p for p in model.model.layers.parameters() if p.ndim == 2]
    names = {id(p) for p in inner}
    others = [p for p in model.parameters() if id(p) not in names]
    return [
        torch.optim.Muon(
            inner, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_factor(step: int, steps: int) -> float:
    """Warm-up, a plateau, then a linear fall to zero."""
    return min((step + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))


def train(worker: int, port: int, args: argparse.Namespace) -> None:
    """One worker's whole run; worker 0 reports and writes."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=worker, world_size=args.workers)
    tokenizer = build_tokenizer()
    encode = {chr(c): tokenizer(chr(c)).input_ids[0] for c in range(128)}
    end = tokenizer.convert_tokens_to_ids(str(tokenizer.eos_token))
    assert isinstance(end, int)
    model = new_model(args.seed)
    optimizers = make_optimizers(model, args.rate)
    done, seconds, checkpoint = 0, 0.0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        done, seconds = state["step"], state["seconds"]
    loss_of = torch.compile(make_loss(model)) if args.compile else make_loss(model)
    parameters = list(model.parameters())
    started, mean = time.time() - seconds, 0.0
    with Progress(disable=worker > 0 or not args.progress) as progress:
        bar = progress.add_task("training tiny", total=args.steps, completed=done)
        for step in range(done, args.steps):
            rng = random.Random(f"{args.seed}-{step}-{worker}")
            total, last = loss_of(*draw_rows(rng, encode, end))
            total.backward()
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            dist.all_reduce(flat)
            flat /= args.workers
            flat *= min(1.0, 1.0 / (float(flat.norm()) + 1e-6))
            pieces = flat.split([p.numel() for p in parameters])
            for parameter, piece in zip(parameters, pieces, strict=True):
                parameter.grad = piece.view_as(parameter).clone()
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = args.rate * rate_factor(step, args.steps)
                optimizer.step()
                optimizer.zero_grad()
            mean = float(last) if step == done else 0.98 * mean + 0.02 * float(last)
            progress.update(bar, completed=step + 1, description=f"training tiny, loss {mean:.3f}")
            if worker == 0 and not args.progress and step % 20 == 0:
                print(f"step {step} loss {mean:.4f} {time.time() - started:.0f} s", flush=True)
            if worker == 0 and ((step + 1) % args.every == 0 or step + 1 == args.steps):
                spent = time.time() - started
                state = {"model": model.state_dict(), "step": step + 1, "seconds": spent}
                state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
                torch.save(state, checkpoint.with_suffix(".tmp"))
                checkpoint.with_suffix(".tmp").replace(checkpoint)
                tokens = (step + 1) * args.workers * ROWS * ROW
                write_weights(model, args, tokens=tokens, seconds=spent, loss=mean)
    dist.destroy_process_group()


def write_weights(
    model: Qwen2ForCausalLM, args: argparse.Namespace, *, tokens: int, seconds: float, loss: float
) -> None:
    """The model folder as transformers reads it, and `training.json`: how it was made."""
    model.save_pretrained(args.out)
    build_tokenizer().save_pretrained(args.out)
    record = {
        "command": f"python -m prunebench.tiny.train --seed {args.seed} --steps {args.steps} "
        f"--rate {args.rate:g} --workers {args.workers}",
        "seed": args.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": tokens,
        "seconds": round(seconds),
        "loss": round(loss, 4),
        "torch": torch.__version__,
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Parse the command line and start the workers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1700)
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate at its height")
    parser.add_argument("--workers", type=int, default=2, help="one-thread processes")
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--no-progress", dest="progress", action="store_false")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(port, args), nprocs=args.workers)


if __name__ == "__main__":
    main()
