"""The sparse autoencoder: an encoder, a dictionary, two biases, over the package's operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..ops import SparseCode, checks, decode, encode_l0, encode_top_m, placements, sharded
from .base import Autoencoder, growing
from .losses import Losses, fvu, l0


class SparseAutoencoder(Autoencoder):
    """``x -> D z + b_dec`` with a sparse code z of ``W x + bias``.

    With one stage it is a TopK (``positive``), AbsTopK (signed), JumpReLU or ReLU autoencoder; with
    K stages the residual goes through W again, ``z <- h(z + W (x - D z) + bias)``, S never formed.

    Args:
        in_features: n. code_size: p.
        m: entries of a code, 1 <= m <= p: a number, or for K > 1 one for each stage; None without
            "top_m".
        selection: "top_m": the m largest; "threshold": what is above theta (JumpReLU); "relu":
            what is above 0.
        positive: nonnegative codes, or signed ones, ranked by magnitude, with "top_m" alone.
        num_stages: K >= 1.
        apply_b_dec_to_input: encode ``x - b_dec``.
        normalize: what is done to x before, and undone behind: "none"; "layer_norm": each vector
            minus its mean, over its standard deviation; "constant_norm_rescale": to norm sqrt(n).
        scale_by_norms: rank and give entries times the norm of their atom, as if atoms had norm 1;
            one stage, "top_m" alone. Costs O(p n) a call; :meth:`fold_norms` makes an end of it.
        flatten_heads: x is [..., heads, n / heads], and so is the reconstruction.
        theta: > 0, threshold to begin with. sigma: in [0, 1], width of the window below theta in
            which it gets a gradient, as a fraction of theta; 0: none.

    Attributes:
        W: [p, n]. bias: [p]. b_dec: [n].
        D: [n, p], stored by columns: ``D.t()`` is contiguous, its rows are the atoms, and so are
            those of ``D.grad``.
        theta: [p], with "threshold"; negative ones act as 0.
        metadata: what a file says about its model and data, kept for writing.
        source: where it was loaded from, and as which format; else empty.

    ``sae(x)``: reconstruction of x [..., n]. Weights start as random unit atoms D, W = D',
    biases 0. With "top_m" nothing of [B, p] is formed. Costs and derivatives are those of
    :func:`deepl0_kernels.encode_top_m`, :func:`deepl0_kernels.encode_l0` and
    :func:`deepl0_kernels.decode`. In evaluation mode the encoder's weights are kept ready for the
    CPU from the second call on, as :func:`deepl0_kernels.prepare` says.

    Raises:
        TypeError, ValueError: an argument of another kind or out of range, named with its value.

    Sources: Makhzani and Frey 2013 and Gao et al. 2024 (TopK), Rajamanoharan et al. 2024
    (JumpReLU), Wang, Ling, Huang 2016, eq. 10 (stages).

    Example:
        >>> from deepl0_kernels import sae
        >>> model = sae.SparseAutoencoder(16, 64, m=4)  # a TopK autoencoder
        >>> code = model.encode(torch.randn(8, 16))
        >>> code.values.shape, model.decode(code).shape
        (torch.Size([8, 4]), torch.Size([8, 16]))
    """

    # -- encoding and decoding

    def encode(self, x: Tensor) -> SparseCode | Tensor:
        """Codes of x [..., n]: a :class:`deepl0_kernels.SparseCode` with values and indices
        [..., m], or, without "top_m", dense [..., p].

        Raises:
            ValueError: x does not fit the weights.
        """
        x = self._vectors(x)
        return self._code(self._normalized(x)[0])

    def decode(self, code: SparseCode | Tensor, like: Tensor | None = None) -> Tensor:
        """Reconstructions [..., n] of codes as :meth:`encode` gives them.

        Args:
            code: of ``encode``, or any :class:`deepl0_kernels.SparseCode` or dense code of size p.
            like: the x that was encoded. Needed with ``normalize`` and ``flatten_heads``, whose
                mean, norms and heads the reconstruction gets; else not looked at.

        Raises:
            ValueError: a code of another size, or no ``like`` where it is needed.
        """
        if self.normalize == "none" and not self.flatten_heads:
            return self._synthesis(code) + self.b_dec
        if like is None:
            raise ValueError(
                f"like must be the encoded x with normalize={self.normalize!r}, "
                f"flatten_heads={self.flatten_heads}, got None"
            )
        _, undo = self._normalized(self._vectors(like))
        return self._denormalized(self._synthesis(code) + self.b_dec, undo).reshape(like.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of x, of its shape."""
        vectors, undo = self._normalized(self._vectors(x))
        x_hat = self._synthesis(self._code(vectors)) + self.b_dec
        return self._denormalized(x_hat, undo).reshape(x.shape)

    def _vectors(self, x: Tensor) -> Tensor:
        """x checked, as [..., n]."""
        checks.floating("x", x)
        checks.like("x", x, "the weights", self.W)
        n = self.in_features
        if self.flatten_heads:
            if x.dim() < 2 or x.shape[-1] * x.shape[-2] != n:
                raise ValueError(
                    f"x must have shape [..., heads, n / heads] with n = {n}, got {checks.shape(x)}"
                )
            x = x.flatten(-2)
        if x.shape[-1] != n:
            raise ValueError(f"x must have shape [..., n] = [..., {n}], got {checks.shape(x)}")
        return x

    def _normalized(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x as the encoder sees it, and what undoes that: (factor, summand)."""
        if self.normalize == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            x = x - mean
            std = x.std(dim=-1, keepdim=True)
            return x / (std + 1e-5), (std, mean)
        if self.normalize == "constant_norm_rescale":
            factor = self.in_features**0.5 / x.norm(dim=-1, keepdim=True)
            return x * factor, (1 / factor,)
        return x, ()

    @staticmethod
    def _denormalized(x_hat: Tensor, undo: tuple[Tensor, ...]) -> Tensor:
        if undo:
            x_hat = x_hat * undo[0]
        return x_hat + undo[1] if len(undo) > 1 else x_hat

    def _units(self, some: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """W and bias as they are ranked, and atoms [p, n], of all units or of some."""
        W: Tensor = self.W
        bias: Tensor = self.bias
        atoms = self.D.t()
        if some is not None:
            W, bias, atoms = (t.index_select(0, some) for t in (W, bias, atoms))
        if self.scale_by_norms:
            norms = _norms(atoms)
            W, bias = W * norms[:, None], bias * norms
        return W, bias, atoms

    def _sum(self, code: SparseCode, atoms: Tensor) -> Tensor:
        """Atoms [p, n] in the amounts of a code."""
        if self.scale_by_norms:
            values = code.values / _norms(atoms)[code.indices]
            code = SparseCode(values, code.indices, code.size)
        return decode(code, atoms.t())

    def _centered(self, x: Tensor) -> Tensor:
        return x - self.b_dec if self.apply_b_dec_to_input else x

    def _shifted(
        self,
        x: Tensor,
        W: Tensor,
        bias: Tensor,
        sum_over_shards: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """x and bias of a code of x - b_dec.

        Where x is data, the encoder need not find its gradient, [B, n], for that of b_dec alone.
        """
        if not self.apply_b_dec_to_input or x.requires_grad or not torch.is_grad_enabled():
            return self._centered(x), bias
        return x - self.b_dec.detach(), _ShiftOfInput.apply(bias, self.b_dec, W, sum_over_shards)

    def _code(self, x: Tensor) -> SparseCode | Tensor:
        K = self.num_stages
        D = self.D if K > 1 else None
        if self.selection != "top_m":
            # A ReLU is the threshold 0, an entry of which is 0 on either side.
            theta = self.W.new_zeros(()) if self.theta is None else _just_above(self.theta)
            sigma = self.sigma if self.training and self.theta is not None else 0.0
            x, bias = self._shifted(x, self.W, self.bias)
            return encode_l0(
                x,
                self.W,
                None,
                theta,
                num_stages=K,
                sigma=sigma,
                grad="ste_theta" if sigma else "hard",
                bias=bias,
                positive=True,
                D=D,
                plan=self._plan(),
            )
        W, bias, _ = self._units()
        x, bias = self._shifted(x, W, bias)
        m = self.m if D is not None else self.m[0]
        return encode_top_m(
            x,
            W,
            None,
            m,
            num_stages=K,
            bias=bias,
            positive=self.positive,
            D=D,
            plan=self._plan() if W is self.W else None,
        )

    def _synthesis(self, code: SparseCode | Tensor) -> Tensor:
        """``D z``, without b_dec."""
        if isinstance(code, SparseCode):
            if code.size != self.code_size:
                raise ValueError(f"code must have size p = {self.code_size}, got {code.size}")
            return self._sum(code, self.D.t())
        checks.floating("code", code)
        checks.like("code", code, "the weights", self.W)
        if code.shape[-1] != self.code_size:
            raise ValueError(
                f"code must have shape [..., p] with p = {self.code_size}, got {checks.shape(code)}"
            )
        atoms = self.D.t()
        return (code / _norms(atoms) if self.scale_by_norms else code) @ atoms

    # -- training

    def loss(
        self,
        x: Tensor,
        *,
        dead: Tensor | None = None,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        l0_coefficient: float = 0.0,
    ) -> Losses:
        """The terms of a training step on x [..., n], differentiable.

        Args:
            x: activations.
            dead: int64 indices of dead units, as of :meth:`DeadUnits.units`; None or empty: no
                auxiliary term. It asks them to predict what the others leave of x.
            k_aux: > 0, entries of the dead units' codes, at most as many as are dead; None: n / 2,
                at least 1.
            aux_coefficient: >= 0. l0_coefficient: >= 0, for thresholds.

        Returns:
            :class:`Losses`: ``loss = mse + aux_coefficient aux + l0_coefficient l0``.

        Raises:
            TypeError, ValueError: an argument that does not fit, named with its value.

        O(B (n m + d n)) beyond encode and decode for d dead units. Source: Gao et al. 2024,
        appendix A.2 (AuxK).
        """
        aux_coefficient = checks.nonnegative("aux_coefficient", aux_coefficient)
        l0_coefficient = checks.nonnegative("l0_coefficient", l0_coefficient)
        if l0_coefficient and self.theta is None:
            raise ValueError(
                f"l0_coefficient must be 0 with selection={self.selection!r}, where L0 has no "
                f"gradient, got {l0_coefficient}"
            )
        if k_aux is None:
            k_aux = max(self.in_features // 2, 1)
        k_aux = checks.integer("k_aux", k_aux, 1)
        vectors = self._vectors(x)
        inner, undo = self._normalized(vectors)
        code = self._code(inner)
        inner_hat = self._synthesis(code) + self.b_dec
        x_hat = self._denormalized(inner_hat, undo)
        mse = _mean_square(x_hat - vectors)
        aux = torch.zeros_like(mse)
        if dead is not None and (count := self._check_dead(dead)):
            # What is to be predicted, and from where, as the encoder sees it.
            residual = (inner - inner_hat).detach()
            aux = min(count / k_aux, 1.0) * self._aux(inner, residual, dead, min(k_aux, count))
        nonzeros = l0(code, self.theta)
        loss = mse + aux_coefficient * aux
        if l0_coefficient:
            loss = loss + l0_coefficient * nonzeros
        with torch.no_grad():
            unexplained = fvu(vectors, x_hat)
        return Losses(loss, mse, unexplained, aux, nonzeros, x_hat.reshape(x.shape), code)

    def _check_dead(self, dead: Tensor) -> int:
        if not isinstance(dead, Tensor):
            raise TypeError(f"dead must be a tensor, got {type(dead).__name__}")
        if dead.dtype != torch.int64 or dead.dim() != 1 or dead.device != self.W.device:
            raise ValueError(
                f"dead must be int64 [d] on {self.W.device}, got {dead.dtype} "
                f"{checks.shape(dead)} on {dead.device}"
            )
        if len(dead) and not 0 <= dead.min() <= dead.max() < self.code_size:
            raise ValueError(
                f"dead must be in [0, p) with p = {self.code_size}, got {dead.min().item()} to "
                f"{dead.max().item()}"
            )
        return len(dead)

    def _aux(self, x: Tensor, residual: Tensor, dead: Tensor, k: int) -> Tensor:
        """Mean of ``||residual - D z||^2``, z the k largest entries among the dead units."""
        if placements.is_dtensor(self.W):
            some = sharded.Some(self.W, self.bias, self.D, dead)
            x, bias = self._shifted(x, some.W, some.bias, some.units.sum)
            rows, like = checks.rows(x), checks.rows(residual)
            return _mean_square(some.decode(*some.encode(rows, bias, k, self.positive)) - like)
        W, bias, atoms = self._units(dead)
        x, bias = self._shifted(x, W, bias)
        code = encode_top_m(x, W, None, k, num_stages=1, bias=bias, positive=self.positive)
        return _mean_square(self._sum(code, atoms) - residual)

    @torch.no_grad()
    def normalize_atoms(self) -> None:
        """Give every atom, a column of D, norm 1, in place; atoms that are 0 stay so. O(p n)."""
        atoms = self.D.t()
        norms = torch.linalg.vector_norm(atoms, dim=1, keepdim=True, dtype=_wide(atoms.dtype))
        atoms.div_(torch.where(norms > 0, norms, 1.0).to(atoms.dtype))

    @torch.no_grad()
    def remove_parallel_gradient(self) -> None:
        """Take from ``D.grad`` what points along the atoms, in place: an optimiser's step on atoms
        of norm 1 then turns them and does not stretch them. O(p n), no second [p, n].

        Raises:
            ValueError: there is no gradient.
        """
        if self.D.grad is None:
            raise ValueError("D.grad must be there, got None: call backward() before")
        atoms, grad = self.D.t(), self.D.grad.t()
        squared = torch.linalg.vector_norm(atoms, dim=1, dtype=_wide(atoms.dtype)).square()
        # einsum makes a product of matrices of it, with no [p, n] of products to be summed.
        along = torch.einsum("pn,pn->p", grad, atoms) / torch.where(squared > 0, squared, 1.0)
        grad.addcmul_(atoms, along.to(grad.dtype)[:, None], value=-1)

    @torch.no_grad()
    def fold_norms(self) -> None:
        """Bring atoms to norm 1 and scale W, bias and theta so that codes are those of before times
        the norms, and reconstructions the same. ``scale_by_norms`` is False then. In place, O(p n).

        Raises:
            ValueError: the function would change: entries are ranked without the norms, or there
                are several stages.
        """
        if not self.scale_by_norms and (self.selection == "top_m" or self.num_stages > 1):
            raise ValueError(
                "fold_norms needs scale_by_norms or one stage of thresholds, got "
                f"scale_by_norms={self.scale_by_norms}, selection={self.selection!r}, "
                f"num_stages={self.num_stages}: another selection would result"
            )
        atoms = self.D.t()
        norms = atoms.norm(dim=1)
        norms = torch.where(norms > 0, norms, 1.0)
        atoms.div_(norms[:, None])
        self.W.mul_(norms[:, None])
        self.bias.mul_(norms)
        if self.theta is not None:
            self.theta.mul_(norms)
        self.scale_by_norms = False

    def deepen(self, num_stages: int, m: int | Sequence[int] | None = None) -> SparseAutoencoder:
        """A copy of K stages that starts from these weights.

        Args:
            num_stages: K >= that of this one.
            m: entries that the stages keep, one number or K of them. None: those of the last stage
                times k / K in stage k, rounded up, which leaves less of x than as many in every
                stage; where K is that of this one, its own; and None without "top_m".

        The reconstruction is another one, and need not be nearer before it is trained: W is not
        scaled to a step of descent. Norms are folded in, see :meth:`fold_norms`.

        Raises:
            TypeError, ValueError: num_stages or m is no such number.
        """
        own = self.num_stages
        K = checks.integer("num_stages", num_stages, own)
        clones = {k: p.detach().clone() for k, p in self.named_parameters(recurse=False)}
        same = self.from_weights(**clones, **self.options())
        if same.scale_by_norms and own < K:
            same.fold_norms()
        options = same.options() | {"num_stages": K}
        if m is not None:
            options["m"] = m
        elif self.m and own < K:
            options["m"] = growing(self.m[-1], K)
        clones = {k: p.detach() for k, p in same.named_parameters(recurse=False)}
        deeper = self.from_weights(**clones, **options)
        deeper.metadata = dict(self.metadata)
        return deeper.train(self.training)

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, code_size={self.code_size}"
        options = ", ".join(f"{key}={value!r}" for key, value in self.options().items())
        return f"{shape}, {options}" + (f", source={self.source!r}" if self.source else "")


class _ShiftOfInput(torch.autograd.Function):
    """bias as it is, and the gradient that b_dec has as part of ``W (x - b_dec) + bias``: every
    row of x - b_dec meets W, and bias goes where ``W x`` does, so it is -W' times that of bias."""

    generate_vmap_rule = True

    @staticmethod
    def forward(bias, b_dec, W, sum_over_shards):
        return bias.view_as(bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])
        ctx.sum_over_shards = inputs[3]

    @staticmethod
    def backward(ctx, grad):
        (W,) = ctx.saved_tensors
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None
        if placements.is_dtensor(W):
            own = grad.to_local() @ W.to_local()
            return grad, -placements.units_of_tensor(W).sum(own), None, None
        shift = grad @ W
        return grad, -(ctx.sum_over_shards or _as_it_is)(shift), None, None


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _mean_square(error: Tensor) -> Tensor:
    """Mean of ``||error||^2`` over the vectors, in float32 at least."""
    return error.to(_wide(error.dtype)).square().sum(-1).mean()


def _norms(atoms: Tensor) -> Tensor:
    """[p] of atoms [p, n], something to divide by."""
    return atoms.norm(dim=1).clamp_min(torch.finfo(atoms.dtype).tiny)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _just_above(theta: Tensor) -> Tensor:
    """The least number above max(theta, 0): ``u >= it`` is ``u > theta``, as JumpReLU compares.

    The operators keep an entry that equals its threshold. The derivative is that of max(theta, 0).
    """
    wide = theta.to(_wide(theta.dtype)).clamp_min(0)
    return wide + (torch.nextafter(wide, torch.full_like(wide, torch.inf)) - wide).detach()
