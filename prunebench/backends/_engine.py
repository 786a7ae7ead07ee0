"""Runs a causal language model on a growing cache: prompts, single tokens, given prefixes.

Knows the model and its adapters; knows nothing of problems, sampling or where weights come from.
Everything here runs in inference mode and leaves the weights alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch

from prunebench.backend import ReaderWeights
from prunebench.backends._cache import GrowingCache, left_padded
from prunebench.backends._internals import Block, CachedInternals
from prunebench.errors import ConfigError, DamagedFile, UnknownName

CHUNK_TOKENS = 8192
"""Most tokens in one forward pass over prefixes: bounds the activations' memory."""
UNUSED_BY_ADAPTERS = ("embed_tokens.weight", "lm_head.weight")
"""Ends of the names of weights that a reader's adapter may carry."""


class Engine:
    """A loaded model with the operations that sessions and internals are made of.

    Attributes
    ----------
    model : the transformers model, in evaluation mode.
    eos_ids : token ids that end a path.
    """

    def __init__(self, model: Any, eos_ids: Sequence[int]) -> None:
        self.model = model.eval()
        self.device: torch.device = model.device
        self.eos_ids = torch.tensor(sorted(set(eos_ids)), device=self.device)
        config = model.config.get_text_config()
        self.n_vocab: int = config.vocab_size
        self.hidden_size: int = config.hidden_size
        window = getattr(config, "sliding_window", None)
        # Older configurations name no types: a window there means that every layer slides.
        default = ["sliding_attention" if window else "full_attention"]
        layer_types = set(getattr(config, "layer_types", None) or default)
        unknown = layer_types - {"full_attention", "sliding_attention", "chunked_attention"}
        if unknown:
            raise ConfigError(
                f"The transformers backend runs models whose layers attend over a key-value cache. "
                f"Got layers of type {', '.join(sorted(unknown))} instead; choose another model."
            )
        # A ready mask of four dimensions spares transformers its own construction at every token,
        # but it stands for one kind of layer only.
        sliding = layer_types != {"full_attention"}
        attention = getattr(config, "_attn_implementation", "")
        self._direct_mask = not sliding and attention in ("sdpa", "eager")
        self._adapters: set[str] = set()
        self._tuners: list[Any] = []  # the layers that adapters have wrapped
        self._readers: dict[str, ReaderWeights] = {}

    # ---- forward passes

    def mask(self, pads: torch.Tensor, slots: int) -> torch.Tensor:
        """Attention mask of rows that begin after `pads` slots, for one new token per row and up
        to `slots` slots; cut it with `[..., :n]`."""
        seen = torch.arange(slots, device=self.device) >= pads[:, None]
        if not self._direct_mask:
            return seen
        dtype = self.model.dtype
        hidden = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        return hidden.masked_fill_(~seen, torch.finfo(dtype).min)[:, None, None]

    @torch.inference_mode()
    def logits(
        self,
        ids: torch.Tensor,
        cache: GrowingCache,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Raw float32 logits `(rows, vocab)` after the last of the new tokens `(rows, n)`."""
        output = self.model(
            input_ids=ids,
            past_key_values=cache,
            position_ids=positions,
            attention_mask=mask,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    @torch.inference_mode()
    def states(self, cache: GrowingCache, positions: torch.Tensor, **inputs: Any) -> Any:
        """The base model's output for new tokens; `last_hidden_state` is after the final norm."""
        return self.model.base_model(
            past_key_values=cache, position_ids=positions, use_cache=True, **inputs
        )

    @torch.inference_mode()
    def prefill(self, prompt_ids: np.ndarray) -> tuple[GrowingCache, torch.Tensor]:
        """Cache of one row that holds the prompt, and the logits `(1, vocab)` after it."""
        ids = torch.tensor(prompt_ids.tolist(), device=self.device)[None]
        cache = GrowingCache()
        return cache, self.logits(ids, cache, torch.arange(ids.shape[1], device=self.device)[None])

    @torch.inference_mode()
    def unembed(self, states: torch.Tensor, *, normed: bool) -> torch.Tensor:
        """Log-probabilities `(..., vocab)` that the output head reads from states."""
        states = states.to(self.device, self.model.dtype)
        if not normed:
            states = self._final_norm()(states)
        logits = self.model.get_output_embeddings()(states).float()
        config = self.model.config.get_text_config()
        logits = logits * (getattr(config, "logit_scale", None) or 1.0)  # Cohere
        logits = logits / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = cap * torch.tanh(logits / cap)
        return logits.log_softmax(-1).cpu()

    def _final_norm(self) -> Any:
        for name in ("norm", "final_layernorm", "final_layer_norm", "ln_f"):
            if hasattr(self.model.base_model, name):
                return getattr(self.model.base_model, name)
        raise ConfigError(
            f"The final norm of {type(self.model).__name__} was not found, so states of "
            f"intermediate layers cannot be read. Choose another model or method."
        )

    # ---- given prefixes

    def encode(self, prompt_ids: np.ndarray, prefixes: Sequence[np.ndarray]) -> CachedInternals:
        """Internals of given prefixes. What it runs is not counted: it stands in for a cache that
        a live session already has."""
        blocks, _, _ = self.run_prefixes(prompt_ids, prefixes)
        return CachedInternals(self, prompt_ids, prefixes, blocks)

    @torch.inference_mode()
    def run_prefixes(
        self,
        prompt_ids: np.ndarray,
        prefixes: Sequence[np.ndarray],
        layers: Sequence[int] | None = None,
    ) -> tuple[list[Block], torch.Tensor | None, int]:
        """Run prefixes from scratch.

        The prompt runs once for all prefixes of the full length, which are most of them; the few
        that ended early run in a batch of their own, padded on the left.

        Returns
        -------
        blocks : the caches; empty when hidden states are asked for.
        states : as `Internals.hidden_states`, or None without `layers`.
        n_tokens : tokens that went through the model.
        """
        n_full = max((len(p) for p in prefixes), default=0)
        states = None
        if layers is not None:
            shape = (len(prefixes), len(layers), n_full, self.hidden_size)
            states = torch.full(shape, torch.nan)
        shared = len(prompt_ids) > 0  # nothing to share without a prompt
        full = [i for i, p in enumerate(prefixes) if len(p) == n_full and shared]
        short = [i for i, p in enumerate(prefixes) if len(p) < n_full or not shared]
        blocks, n_tokens = [], 0
        if full:
            block = self._run_full(prompt_ids, prefixes, full, layers, states)
            blocks.append(block)
            n_tokens += len(prompt_ids) + len(full) * n_full
        step = max(1, CHUNK_TOKENS // (len(prompt_ids) + n_full))
        for start in range(0, len(short), step):
            chosen = short[start : start + step]
            blocks.append(self._run_padded(prompt_ids, prefixes, chosen, layers, states))
            n_tokens += sum(len(prompt_ids) + len(prefixes[i]) for i in chosen)
        return ([] if layers is not None else blocks), states, n_tokens

    def _run_full(
        self,
        prompt_ids: np.ndarray,
        prefixes: Sequence[np.ndarray],
        chosen: list[int],
        layers: Sequence[int] | None,
        states: torch.Tensor | None,
    ) -> Block:
        n_prompt, n_new = len(prompt_ids), len(prefixes[chosen[0]])
        prompt, _ = self.prefill(prompt_ids)
        step = max(1, CHUNK_TOKENS // max(1, n_new))
        # Hidden states need no cache afterwards, so that one chunk of it at a time is enough.
        lasting = (
            left_padded([(prompt, 0, 0, n_prompt)], [len(chosen)], n_new) if not layers else None
        )
        for start in range(0, len(chosen) if n_new else 0, step):
            stop = min(start + step, len(chosen))
            if lasting is not None:
                cache = lasting.window(start, stop, n_new)
            else:
                cache = left_padded([(prompt, 0, 0, n_prompt)], [stop - start], n_new)
            ids = torch.as_tensor(
                np.stack([prefixes[i] for i in chosen[start:stop]]), device=self.device
            ).long()
            positions = torch.arange(n_prompt, n_prompt + n_new, device=self.device)
            output = self.states(
                cache,
                positions.expand_as(ids),
                input_ids=ids,
                output_hidden_states=layers is not None,
            )
            if states is not None:
                for k, layer in enumerate(layers or ()):
                    states[chosen[start:stop], k] = output.hidden_states[layer].float().cpu()
        if lasting is None:
            lasting = GrowingCache()
        else:
            lasting.advance_to(n_prompt + n_new)
        lengths = torch.full((len(chosen),), n_prompt + n_new, device=self.device)
        return Block(cache=lasting, lengths=lengths, places=chosen)

    def _run_padded(
        self,
        prompt_ids: np.ndarray,
        prefixes: Sequence[np.ndarray],
        chosen: list[int],
        layers: Sequence[int] | None,
        states: torch.Tensor | None,
    ) -> Block:
        rows = [np.concatenate([prompt_ids, prefixes[i]]) for i in chosen]
        width = max(map(len, rows))
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        for row, tokens in enumerate(rows):
            ids[row, width - len(tokens) :] = torch.as_tensor(tokens)
        lengths = torch.tensor([len(tokens) for tokens in rows], device=self.device)
        slots = torch.arange(width, device=self.device)
        pads = width - lengths
        cache = GrowingCache()
        output = self.states(
            cache,
            (slots - pads[:, None]).clamp(min=0),
            input_ids=ids.to(self.device),
            attention_mask=slots >= pads[:, None],
            output_hidden_states=layers is not None,
        )
        if states is not None:
            for k, layer in enumerate(layers or ()):
                values = output.hidden_states[layer].float().cpu()
                for row, i in enumerate(chosen):
                    n = len(prefixes[i])
                    states[i, k, :n] = values[row, width - n :]
        return Block(cache=cache, lengths=lengths, places=chosen)

    # ---- adapters

    def _tuner_layers(self) -> Iterator[Any]:
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (m for m in self.model.modules() if isinstance(m, BaseTunerLayer))

    def load_adapter(self, name: str, folder: FilePath) -> None:
        """Put the PEFT adapter of `folder` into the model, switched off."""
        from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
        from safetensors.torch import load_file

        config_file, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
        for file in (config_file, weights):
            if not file.is_file():
                raise ConfigError(
                    f"The adapter folder must hold adapter_config.json and "
                    f"adapter_model.safetensors, as PEFT saves them. Missing: {file}."
                )
        try:
            config = PeftConfig.from_pretrained(str(folder))
            state = load_file(weights)
        except Exception as error:  # readers of JSON and safetensors have many errors of their own
            raise DamagedFile(
                f"The adapter in {folder} cannot be read ({error}). Train or copy it again."
            ) from error
        self._drop_adapter(name)
        # What PEFT saves beside an adapter when tokens were added; states here need neither.
        state = {k: v for k, v in state.items() if not k.endswith(UNUSED_BY_ADAPTERS)}
        try:
            if foreign := [key for key in state if "lora_" not in key]:
                raise ValueError(f"{foreign[0]} is not part of a LoRA adapter")
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several
                inject_adapter_in_model(config, self.model, adapter_name=name)
                outcome = set_peft_model_state_dict(self.model, state, adapter_name=name)
            missing = [k for k in outcome.missing_keys if "lora_" in k and f".{name}." in k]
            if missing or outcome.unexpected_keys:
                odd = (missing or outcome.unexpected_keys)[0]
                raise ValueError(f"{odd} is {'missing' if missing else 'not part of it'}")
        except (ValueError, RuntimeError) as error:  # also of PEFT and of torch, about shapes
            self._drop_adapter(name)
            reason = " ".join(str(error).split())[:300]
            raise DamagedFile(
                f"The adapter in {folder} does not fit the model {type(self.model).__name__}: "
                f"{reason}. Use an adapter that was trained for this model."
            ) from error
        finally:
            self.model.eval()  # PEFT adds its layers in training mode, with dropout
            self._tuners = list(self._tuner_layers())
            for layer in self._tuners:
                layer.requires_grad_(False)
            self._switch(None)
        self._adapters.add(name)

    def _drop_adapter(self, name: str) -> None:
        for layer in self._tuner_layers():
            layer.delete_adapter(name)
        self._adapters.discard(name)

    def load_reader(self, name: str, weights: ReaderWeights) -> None:
        """Make a learned reader usable by name."""
        if weights.embeddings.shape[1] != self.hidden_size:
            raise ConfigError(
                f"The learned reader must be made for a model of width {self.hidden_size}. Got "
                f"embeddings of width {weights.embeddings.shape[1]}; use weights of this model."
            )
        if weights.adapter is not None:
            self.load_adapter(name, weights.adapter)
        self._readers[name] = weights

    def reader(self, name: str) -> ReaderWeights:
        """The reader of this name. Raises `UnknownName`."""
        if name not in self._readers:
            raise UnknownName("reader", name, self._readers)
        return self._readers[name]

    def _switch(self, name: str | None) -> None:
        """Switch one adapter on, or all off. Not by `enable_adapters`: that walks over all weights,
        which takes as long as a check of a small model."""
        for layer in self._tuners:
            here = name is not None and name in layer._all_available_adapter_names()
            if here and layer.active_adapters != [name]:
                layer.set_adapter(name)
                layer.requires_grad_(False)  # which set_adapter has switched on
            layer._disable_adapters = not here

    @contextmanager
    def adapter(self, name: str | None) -> Iterator[None]:
        """Run the body with this adapter switched on, and none afterwards."""
        if name is None:
            yield
            return
        if name not in self._adapters:
            raise UnknownName("adapter", name, self._adapters)
        if self._tuners and self._tuners[0] not in self._tuner_layers():  # a training took them out
            raise ConfigError(
                f"The adapter {name!r} is no longer in the model, which has been trained on since. "
                f"Load it again."
            )
        self._switch(name)
        try:
            yield
        finally:
            self._switch(None)
