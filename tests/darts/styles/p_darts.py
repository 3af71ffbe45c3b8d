"""In the style of P-DARTS: a search in stages, each with fewer operations on every edge.

    stage   switches, one row of booleans an edge ── only the operations that are switched on
    edge    skip ── Dropout(p), so that skips do not win; p falls from epoch to epoch

What is peculiar to it, and kept: edges with different operations; `p`, which the training script
sets on the network and `update_p()` hands down to the dropouts; alphas as Parameters, which
scripts tell from the weights by their names; a softmax whose axis depends on a size; a final
network that asks for `drop_path_prob` and `training` in every cell. The operations are
quark0/darts' own.

Written anew, from how that code is known to behave. Nothing here may be made easier to capture.
"""

# ruff: noqa: B905  # `zip` without `strict`, as it stands in such code

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Variable

from tests.darts.styles.quark_darts import (
    OPS,
    PRIMITIVES,
    AuxiliaryHeadCIFAR,
    FactorizedReduce,
    Genotype,
    Identity,
    ReLUConvBN,
)


class MixedOp(nn.Module):
    def __init__(self, C, stride, switch, p):
        super().__init__()
        self.m_ops = nn.ModuleList()
        self.p = p
        for i in range(len(switch)):
            if switch[i]:
                primitive = PRIMITIVES[i]
                op = OPS[primitive](C, stride, False)
                if "pool" in primitive:
                    op = nn.Sequential(op, nn.BatchNorm2d(C, affine=False))
                if isinstance(op, Identity) and p > 0:
                    op = nn.Sequential(op, nn.Dropout(self.p))
                self.m_ops.append(op)

    def update_p(self):
        for op in self.m_ops:
            if isinstance(op, nn.Sequential) and isinstance(op[0], Identity):
                op[1].p = self.p

    def forward(self, x, weights):
        return sum(w * op(x) for w, op in zip(weights, self.m_ops))


class Cell(nn.Module):
    def __init__(
        self, steps, multiplier, C_prev_prev, C_prev, C, reduction, reduction_prev, switches, p
    ):
        super().__init__()
        self.reduction = reduction
        self.p = p
        if reduction_prev:
            self.preprocess0 = FactorizedReduce(C_prev_prev, C, affine=False)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0, affine=False)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0, affine=False)
        self._steps = steps
        self._multiplier = multiplier

        self.cell_ops = nn.ModuleList()
        switch_count = 0
        for i in range(self._steps):
            for j in range(2 + i):
                stride = 2 if reduction and j < 2 else 1
                op = MixedOp(C, stride, switch=switches[switch_count], p=self.p)
                self.cell_ops.append(op)
                switch_count = switch_count + 1

    def update_p(self):
        for op in self.cell_ops:
            op.p = self.p
            op.update_p()

    def forward(self, s0, s1, weights):
        s0 = self.preprocess0(s0)
        s1 = self.preprocess1(s1)
        states = [s0, s1]
        offset = 0
        for _ in range(self._steps):
            s = sum(
                self.cell_ops[offset + j](h, weights[offset + j]) for j, h in enumerate(states)
            )
            offset += len(states)
            states.append(s)

        return torch.cat(states[-self._multiplier:], dim=1)


class Network(nn.Module):
    def __init__(
        self,
        C,
        num_classes,
        layers,
        criterion,
        steps,
        multiplier,
        switches_normal,
        switches_reduce,
        p=0.0,
        stem_multiplier=3,
    ):
        super().__init__()
        self._C = C
        self._num_classes = num_classes
        self._layers = layers
        self._criterion = criterion
        self._steps = steps
        self._multiplier = multiplier
        self.p = p
        self.switches_normal = switches_normal
        self.switch_ons = []
        for i in range(len(switches_normal)):
            ons = 0
            for j in range(len(switches_normal[i])):
                if switches_normal[i][j]:
                    ons = ons + 1
            self.switch_ons.append(ons)
        self.switch_on = self.switch_ons[0]  # so many columns have the alphas

        C_curr = stem_multiplier * C
        self.stem = nn.Sequential(
            nn.Conv2d(3, C_curr, 3, padding=1, bias=False), nn.BatchNorm2d(C_curr)
        )

        C_prev_prev, C_prev, C_curr = C_curr, C_curr, C
        self.cells = nn.ModuleList()
        reduction_prev = False
        for i in range(layers):
            if i in [layers // 3, 2 * layers // 3]:
                C_curr *= 2
                reduction = True
                switches = switches_reduce
            else:
                reduction = False
                switches = switches_normal
            cell = Cell(
                steps,
                multiplier,
                C_prev_prev,
                C_prev,
                C_curr,
                reduction,
                reduction_prev,
                switches,
                self.p,
            )
            reduction_prev = reduction
            self.cells += [cell]
            C_prev_prev, C_prev = C_prev, multiplier * C_curr

        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)

        self._initialize_alphas()

    def forward(self, input):
        s0 = s1 = self.stem(input)
        for cell in self.cells:
            if cell.reduction:
                if self.alphas_reduce.size(1) == 1:
                    weights = F.softmax(self.alphas_reduce, dim=0)
                else:
                    weights = F.softmax(self.alphas_reduce, dim=-1)
            else:
                if self.alphas_normal.size(1) == 1:
                    weights = F.softmax(self.alphas_normal, dim=0)
                else:
                    weights = F.softmax(self.alphas_normal, dim=-1)
            s0, s1 = s1, cell(s0, s1, weights)
        out = self.global_pooling(s1)
        logits = self.classifier(out.view(out.size(0), -1))
        return logits  # noqa: RET504

    def update_p(self):
        for cell in self.cells:
            cell.p = self.p
            cell.update_p()

    def _loss(self, input, target):
        logits = self(input)
        return self._criterion(logits, target)

    def _initialize_alphas(self):
        k = sum(1 for i in range(self._steps) for n in range(2 + i))
        num_ops = self.switch_on
        self.alphas_normal = nn.Parameter(1e-3 * torch.randn(k, num_ops))
        self.alphas_reduce = nn.Parameter(1e-3 * torch.randn(k, num_ops))
        self._arch_parameters = [
            self.alphas_normal,
            self.alphas_reduce,
        ]

    def arch_parameters(self):
        return self._arch_parameters


# The final network


def drop_path(x, drop_prob):
    if drop_prob > 0.:
        keep_prob = 1. - drop_prob
        make = torch.cuda.FloatTensor if x.is_cuda else torch.FloatTensor
        mask = Variable(make(x.size(0), 1, 1, 1).bernoulli_(keep_prob))
        x.div_(keep_prob).mul_(mask)
    return x


class FinalCell(nn.Module):
    def __init__(self, genotype, C_prev_prev, C_prev, C, reduction, reduction_prev):
        super().__init__()
        if reduction_prev:
            self.preprocess0 = FactorizedReduce(C_prev_prev, C)
        else:
            self.preprocess0 = ReLUConvBN(C_prev_prev, C, 1, 1, 0)
        self.preprocess1 = ReLUConvBN(C_prev, C, 1, 1, 0)

        op_names, self._indices = zip(*(genotype.reduce if reduction else genotype.normal))
        self._concat = genotype.reduce_concat if reduction else genotype.normal_concat
        self._steps = len(op_names) // 2
        self.multiplier = len(self._concat)
        self._ops = nn.ModuleList()
        for name, index in zip(op_names, self._indices):
            stride = 2 if reduction and index < 2 else 1
            self._ops += [OPS[name](C, stride, True)]

    def forward(self, s0, s1, drop_prob):
        s0 = self.preprocess0(s0)
        s1 = self.preprocess1(s1)

        states = [s0, s1]
        for i in range(self._steps):
            op1, op2 = self._ops[2 * i], self._ops[2 * i + 1]
            h1 = op1(states[self._indices[2 * i]])
            h2 = op2(states[self._indices[2 * i + 1]])
            if self.training and drop_prob > 0.:
                if not isinstance(op1, Identity):
                    h1 = drop_path(h1, drop_prob)
                if not isinstance(op2, Identity):
                    h2 = drop_path(h2, drop_prob)
            states += [h1 + h2]
        return torch.cat([states[i] for i in self._concat], dim=1)


class NetworkCIFAR(nn.Module):
    def __init__(self, C, num_classes, layers, auxiliary, genotype):
        super().__init__()
        self._layers = layers
        self._auxiliary = auxiliary
        self.drop_path_prob = 0.0  # raised from epoch to epoch by the training script

        C_curr = 3 * C
        self.stem = nn.Sequential(
            nn.Conv2d(3, C_curr, 3, padding=1, bias=False), nn.BatchNorm2d(C_curr)
        )
        C_prev_prev, C_prev, C_curr = C_curr, C_curr, C
        self.cells = nn.ModuleList()
        reduction_prev = False
        for i in range(layers):
            reduction = i in [layers // 3, 2 * layers // 3]
            if reduction:
                C_curr *= 2
            cell = FinalCell(genotype, C_prev_prev, C_prev, C_curr, reduction, reduction_prev)
            reduction_prev = reduction
            self.cells += [cell]
            C_prev_prev, C_prev = C_prev, cell.multiplier * C_curr
            if i == 2 * layers // 3:
                C_to_auxiliary = C_prev

        if auxiliary:
            self.auxiliary_head = AuxiliaryHeadCIFAR(C_to_auxiliary, num_classes)
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)

    def forward(self, input):
        s0 = s1 = self.stem(input)
        logits_aux = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self.drop_path_prob)
            if i == 2 * self._layers // 3 and self._auxiliary and self.training:
                logits_aux = self.auxiliary_head(s1)
        out = self.global_pooling(s1)
        logits = self.classifier(out.view(out.size(0), -1))
        return logits, logits_aux


# The edges of one of the later stages, two steps: on each three operations, not the same ones.
SWITCHES = [
    # none, max, avg, skip, sep3, sep5, dil3, dil5
    [False, True, False, True, True, False, False, False],
    [False, False, False, True, True, False, True, False],
    [False, False, True, False, True, False, True, False],
    [True, False, False, True, False, False, True, False],
    [False, True, False, True, False, True, False, False],
]
# By hand, as users do: an edge has fewer than the alphas have columns, and zip leaves the rest.
UNEVEN_SWITCHES = [
    SWITCHES[0],
    [False, False, False, True, False, False, False, False],
    [True, False, False, False, True, False, False, False],
    [False, False, False, True, False, False, False, True],
    SWITCHES[4],
]
# What is left at the end of the last stage: the softmax is over the edges.
SINGLE_SWITCHES = [[index == kind for index in range(8)] for kind in (3, 4, 1, 6, 3)]

GENOTYPE = Genotype(
    normal=[
        ("skip_connect", 0), ("dil_conv_3x3", 1),
        ("skip_connect", 0), ("sep_conv_3x3", 2),
        ("sep_conv_5x5", 1), ("dil_conv_5x5", 3),
    ],
    normal_concat=range(2, 5),
    reduce=[
        ("avg_pool_3x3", 0), ("sep_conv_5x5", 1),
        ("max_pool_3x3", 0), ("dil_conv_3x3", 1),
        ("skip_connect", 1), ("dil_conv_5x5", 3),
    ],
    reduce_concat=range(2, 5),
)


def search_network(C=4, layers=3, switches=SWITCHES, p=0.4, num_classes=10):
    return Network(
        C,
        num_classes,
        layers,
        nn.CrossEntropyLoss(),
        steps=2,
        multiplier=2,
        switches_normal=switches,
        switches_reduce=switches,
        p=p,
    )


def final_network(C=4, layers=4, num_classes=10, auxiliary=True, genotype=GENOTYPE):
    return NetworkCIFAR(C, num_classes, layers, auxiliary, genotype)


def example_inputs():
    return (torch.randn(2, 3, 16, 16),)


def final_example_inputs():
    return (torch.randn(2, 3, 32, 32),)
