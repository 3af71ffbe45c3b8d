"""In the style of PC-DARTS: only a quarter of the channels is searched, and edges have weights.

    edge   x ─┬─ first C/4 channels ── sum of weighted operations ─┬─ cat ── channel shuffle
              └─ the others ── (a max pool, if the first shrank) ──┘
    node   sum of beta * edge(state)

What is peculiar to it, and kept: shapes read by unpacking `x.data.size()`; a branch on whether two
heights are equal, in forward; a maximum pool that some edges hold and never call; betas, whose
softmax is taken node by node over slices and put together with `torch.cat`; alphas and betas are
plain tensors. The operations and the final network are quark0/darts' own.

Written anew, from how that code is known to behave. Nothing here may be made easier to capture.
"""

# ruff: noqa: B905  # `zip` without `strict`, as it stands in such code

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Variable

from tests.darts.styles import quark_darts
from tests.darts.styles.quark_darts import OPS, PRIMITIVES, Genotype


def channel_shuffle(x, groups):
    batchsize, num_channels, height, width = x.data.size()

    channels_per_group = num_channels // groups

    x = x.view(batchsize, groups, channels_per_group, height, width)

    x = torch.transpose(x, 1, 2).contiguous()

    x = x.view(batchsize, -1, height, width)

    return x  # noqa: RET504


class MixedOp(nn.Module):
    def __init__(self, C, stride):
        super().__init__()
        self._ops = nn.ModuleList()
        self.mp = nn.MaxPool2d(2, 2)

        for primitive in PRIMITIVES:
            op = OPS[primitive](C // 4, stride, False)
            if "pool" in primitive:
                op = nn.Sequential(op, nn.BatchNorm2d(C // 4, affine=False))
            self._ops.append(op)

    def forward(self, x, weights):
        # channel proportion k = 4
        dim_2 = x.shape[1]
        xtemp = x[:, :dim_2 // 4, :, :]
        xtemp2 = x[:, dim_2 // 4:, :, :]
        temp1 = sum(w * op(xtemp) for w, op in zip(weights, self._ops))
        # a reduction cell needs a pool before the concat
        if temp1.shape[2] == x.shape[2]:
            ans = torch.cat([temp1, xtemp2], dim=1)
        else:
            ans = torch.cat([temp1, self.mp(xtemp2)], dim=1)
        ans = channel_shuffle(ans, 4)
        return ans  # noqa: RET504


class Cell(quark_darts.SearchCell):
    def __init__(self, *args):
        super().__init__(*args, edge=MixedOp)

    def forward(self, s0, s1, weights, weights2):
        s0 = self.preprocess0(s0)
        s1 = self.preprocess1(s1)

        states = [s0, s1]
        offset = 0
        for _ in range(self._steps):
            s = sum(
                weights2[offset + j] * self._ops[offset + j](h, weights[offset + j])
                for j, h in enumerate(states)
            )
            offset += len(states)
            states.append(s)

        return torch.cat(states[-self._multiplier:], dim=1)


class Network(quark_darts.Network):
    def _cell(self, C_prev_prev, C_prev, C, reduction, reduction_prev):
        return Cell(
            self._steps, self._multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev
        )

    def new(self):
        model_new = Network(
            self._C, self._num_classes, self._layers, self._criterion, self._steps, self._multiplier
        )
        for x, y in zip(model_new.arch_parameters(), self.arch_parameters()):
            x.data.copy_(y.data)
        return model_new

    def forward(self, input):
        s0 = s1 = self.stem(input)
        for cell in self.cells:
            if cell.reduction:
                weights = F.softmax(self.alphas_reduce, dim=-1)
                n = 3
                start = 2
                weights2 = F.softmax(self.betas_reduce[0:2], dim=-1)
                for _ in range(self._steps - 1):
                    end = start + n
                    tw2 = F.softmax(self.betas_reduce[start:end], dim=-1)
                    start = end
                    n += 1
                    weights2 = torch.cat([weights2, tw2], dim=0)
            else:
                weights = F.softmax(self.alphas_normal, dim=-1)
                n = 3
                start = 2
                weights2 = F.softmax(self.betas_normal[0:2], dim=-1)
                for _ in range(self._steps - 1):
                    end = start + n
                    tw2 = F.softmax(self.betas_normal[start:end], dim=-1)
                    start = end
                    n += 1
                    weights2 = torch.cat([weights2, tw2], dim=0)
            s0, s1 = s1, cell(s0, s1, weights, weights2)
        out = self.global_pooling(s1)
        logits = self.classifier(out.view(out.size(0), -1))
        return logits  # noqa: RET504

    def _initialize_alphas(self):
        k = sum(1 for i in range(self._steps) for n in range(2 + i))
        num_ops = len(PRIMITIVES)

        self.alphas_normal = Variable(1e-3 * torch.randn(k, num_ops), requires_grad=True)
        self.alphas_reduce = Variable(1e-3 * torch.randn(k, num_ops), requires_grad=True)
        self.betas_normal = Variable(1e-3 * torch.randn(k), requires_grad=True)
        self.betas_reduce = Variable(1e-3 * torch.randn(k), requires_grad=True)
        self._arch_parameters = [
            self.alphas_normal,
            self.alphas_reduce,
            self.betas_normal,
            self.betas_reduce,
        ]

    def genotype(self):
        none = PRIMITIVES.index("none")

        def _parse(alphas, betas):
            gene, start = [], 0
            for i in range(self._steps):
                end = start + i + 2
                W = F.softmax(alphas[start:end], dim=-1).data.clone()
                W *= F.softmax(betas[start:end], dim=-1).data[:, None]
                W[:, none] = -1.
                for j in sorted(range(i + 2), key=lambda x, W=W: -float(W[x].max()))[:2]:
                    gene.append((PRIMITIVES[W[j].argmax()], j))
                start = end
            return gene

        concat = range(2 + self._steps - self._multiplier, self._steps + 2)
        return Genotype(
            _parse(self.alphas_normal, self.betas_normal),
            concat,
            _parse(self.alphas_reduce, self.betas_reduce),
            concat,
        )


def search_network(C=4, layers=3, steps=4, num_classes=10):
    """Four steps, so that the slices of the betas are the published 2, 3, 4 and 5 long."""
    return Network(
        C, num_classes, layers, nn.CrossEntropyLoss(), steps=steps, multiplier=steps
    )


def example_inputs():
    return (torch.randn(2, 3, 16, 16),)
