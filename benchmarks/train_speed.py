"""Training speed against a Hugging Face Llama of the same shape: tokens per second of forward, backward and AdamW.

    python benchmarks/train_speed.py [--lengths Jsb16thSeparated.json] [--rounds 7] [--threads 2] [--json OUT.jsonl]

Both sides run under bf16 autocast with the same loss, the fused AdamW and the same batches, in turn in one process.

- `rows`: full rows of --time tokens, no padding on either side.
- `pieces`: a batch of whole pieces. Etude packs them end to end; the peer pads them to the longest and masks. Only real
  tokens count. The lengths are those of the benchmark chorales (four tokens a step) where --lengths gives the file,
  else drawn to resemble them.
- `pieces, mask`: Etude on the same packed pieces through the general path, one row with a block-diagonal mask.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

import torch
from peer import llama, pairs, report
from torch import Tensor
from torch.nn import functional as F

from etude.models.symbolic.attention import Packing
from etude.models.symbolic.transformer import Transformer

IGNORED = -100


def lengths_of_pieces(path: Path | None) -> list[int]:
    """Tokens of each piece: of the chorales' training split, or lognormal with their median and spread."""
    if path is not None:
        return [4 * len(piece) for piece in json.loads(path.read_text())["train"]]
    draw = random.Random(0)
    return [4 * round(draw.lognormvariate(5.4, 0.4)) for _ in range(229)]


def step_of(model: torch.nn.Module, logits: Callable[[Tensor, dict], Tensor], compile_model: bool = False) -> Callable:
    """One training step on (tokens, targets, keywords of the model)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    if compile_model:
        logits = torch.compile(logits)

    def step(tokens_bt: Tensor, targets_bt: Tensor, keywords: dict) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            predicted = logits(tokens_bt, keywords)
        loss = F.cross_entropy(predicted.float().flatten(0, 1), targets_bt.flatten(), ignore_index=IGNORED)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def packed(pieces: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and documents of the pieces end to end in one row."""
    tokens_bt = torch.cat([piece[:-1] for piece in pieces])[None]
    targets_bt = torch.cat([piece[1:] for piece in pieces])[None]
    documents_bt = torch.cat([torch.full((len(piece) - 1,), i) for i, piece in enumerate(pieces)])[None]
    return tokens_bt, targets_bt, documents_bt


def padded(pieces: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, targets and attention mask, a piece a row."""
    pad = torch.nn.utils.rnn.pad_sequence
    tokens_bt = pad([piece[:-1] for piece in pieces], batch_first=True, padding_value=0)
    targets_bt = pad([piece[1:] for piece in pieces], batch_first=True, padding_value=IGNORED)
    return tokens_bt, targets_bt, (targets_bt != IGNORED).long()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=Path, help="Jsb16thSeparated.json, for the lengths of real pieces")
    parser.add_argument("--json", type=Path, help="append the rows to this JSON-lines file")
    parser.add_argument("--compile", action="store_true", help="torch.compile both models (minutes)")
    parser.add_argument("--cases", nargs="+", default=["rows", "pieces", "mask"], choices=["rows", "pieces", "mask"])
    for name, default in (
        ("rounds", 7), ("threads", 2), ("vocab", 512), ("dim", 256), ("layers", 6), ("heads", 4), ("hidden", 704),
        ("batch", 8), ("time", 512),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape = {"vocab_size": args.vocab, "dim": args.dim}
    ours = Transformer(**shape, num_layers=args.layers, num_heads=args.heads, hidden_dim=args.hidden)
    peer = llama(**shape, layers=args.layers, heads=args.heads, hidden=args.hidden, max_len=8192)
    print(f"parameters: Etude {ours.num_parameters():,}, peer {sum(p.numel() for p in peer.parameters()):,}")
    our_step = step_of(ours, lambda tokens_bt, keywords: ours(tokens_bt, **keywords), args.compile)
    peer_step = step_of(peer, lambda tokens_bt, keywords: peer(tokens_bt, use_cache=False, **keywords).logits, args.compile)

    rows = []
    if "rows" in args.cases:
        batches = torch.randint(1, args.vocab, (args.rounds, args.batch, args.time + 1))
        timing = pairs(
            lambda i: our_step(batches[i, :, :-1], batches[i, :, 1:], {}),
            lambda i: peer_step(batches[i, :, :-1], batches[i, :, 1:], {}), rounds=args.rounds,
        )  # fmt: skip
        rows.append({"case": f"rows {args.batch} x {args.time}", "tokens": args.batch * args.time} | timing)

    draw = random.Random(1)
    lengths = lengths_of_pieces(args.lengths)
    # every batch has pieces of the same lengths as the first, so that rounds are comparable
    chosen = draw.sample(lengths, args.batch)
    pieces = [[torch.randint(1, args.vocab, (n + 1,)) for n in chosen] for _ in range(args.rounds)]
    for case, method in (("pieces", None), ("mask", Packing.mask)):
        if case not in args.cases:
            continue

        def run_ours(i: int, method: Callable[[Tensor], Packing] | None = method) -> None:
            tokens_bt, targets_bt, documents_bt = packed(pieces[i])
            documents = documents_bt if method is None else method(documents_bt)
            our_step(tokens_bt, targets_bt, {"documents_bt": documents})

        def run_peer(i: int) -> None:
            tokens_bt, targets_bt, mask_bt = padded(pieces[i])
            peer_step(tokens_bt, targets_bt, {"attention_mask": mask_bt})

        name = "pieces" if method is None else "pieces, mask"
        share = sum(chosen) / (len(chosen) * max(chosen))
        timing = pairs(run_ours, run_peer, rounds=args.rounds)
        rows.append({"case": name, "tokens": sum(chosen), "peer_real_share": round(share, 3)} | timing)
        print(f"{name}: {sum(chosen)} tokens in {len(chosen)} pieces, {share:.0%} of the peer's padded batch")
    report("Training, bf16 autocast, forward + backward + AdamW", rows, args.json)


if __name__ == "__main__":
    main()
