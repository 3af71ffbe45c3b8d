"""In the style of NAS-Bench-201 and AutoDL: one small cell, searched in many ways.

    network   x ── stem ── cells ── residual block / 2 ── cells ── residual block / 2 ── cells
              ── last activation ── pool ── (feature, logits)
    cell      node i = sum over j < i of the edge "i<-j", which holds all operations

What is peculiar to it, and kept: edges in a ModuleDict under keys like `1<-0`; one Parameter,
itself called `arch_parameters`; products with the weight on the right; two outputs; a module
asked whether it is true (`if self.preprocess:`); zeros allocated where the channels change;
networks that differ in how a cell is run: all operations (DARTS), one drawn operation with a
straight-through weight (GDAS, in a loop until the draw is finite), uniformly drawn or the best or
a given one, or all divided by their number (SETN).

Written anew, from how that code is known to behave. Nothing here may be made easier to capture.
"""

# ruff: noqa: B905  # `zip` without `strict`, as it stands in such code

import random
from copy import deepcopy

import torch
from torch import nn

NAS_BENCH_201 = ["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"]

OPS = {
    "none": lambda C_in, C_out, stride, affine, track: Zero(C_in, C_out, stride),
    "avg_pool_3x3": lambda C_in, C_out, stride, affine, track: POOLING(
        C_in, C_out, stride, "avg", affine, track
    ),
    "max_pool_3x3": lambda C_in, C_out, stride, affine, track: POOLING(
        C_in, C_out, stride, "max", affine, track
    ),
    "nor_conv_3x3": lambda C_in, C_out, stride, affine, track: ReLUConvBN(
        C_in, C_out, (3, 3), (stride, stride), (1, 1), (1, 1), affine, track
    ),
    "nor_conv_1x1": lambda C_in, C_out, stride, affine, track: ReLUConvBN(
        C_in, C_out, (1, 1), (stride, stride), (0, 0), (1, 1), affine, track
    ),
    "skip_connect": lambda C_in, C_out, stride, affine, track: (
        Identity()
        if stride == 1 and C_in == C_out
        else FactorizedReduce(C_in, C_out, stride, affine, track)
    ),
}


class ReLUConvBN(nn.Module):
    def __init__(
        self, C_in, C_out, kernel_size, stride, padding, dilation, affine, track_running_stats=True
    ):
        super().__init__()
        self.op = nn.Sequential(
            nn.ReLU(inplace=False),
            nn.Conv2d(
                C_in,
                C_out,
                kernel_size,
                stride=stride,
                padding=padding,
                dilation=dilation,
                bias=not affine,
            ),
            nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats),
        )

    def forward(self, x):
        return self.op(x)


class ResNetBasicblock(nn.Module):
    def __init__(self, inplanes, planes, stride, affine=True, track_running_stats=True):
        super().__init__()
        assert stride in (1, 2), f"invalid stride {stride}"
        self.conv_a = ReLUConvBN(inplanes, planes, 3, stride, 1, 1, affine, track_running_stats)
        self.conv_b = ReLUConvBN(planes, planes, 3, 1, 1, 1, affine, track_running_stats)
        if stride == 2:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(kernel_size=2, stride=2, padding=0),
                nn.Conv2d(inplanes, planes, kernel_size=1, stride=1, padding=0, bias=False),
            )
        elif inplanes != planes:
            self.downsample = ReLUConvBN(
                inplanes, planes, 1, 1, 0, 1, affine, track_running_stats
            )
        else:
            self.downsample = None
        self.in_dim = inplanes
        self.out_dim = planes
        self.stride = stride
        self.num_conv = 2

    def forward(self, inputs):
        basicblock = self.conv_a(inputs)
        basicblock = self.conv_b(basicblock)

        if self.downsample is not None:
            residual = self.downsample(inputs)
        else:
            residual = inputs
        return residual + basicblock


class POOLING(nn.Module):
    def __init__(self, C_in, C_out, stride, mode, affine=True, track_running_stats=True):
        super().__init__()
        if C_in == C_out:
            self.preprocess = None
        else:
            self.preprocess = ReLUConvBN(C_in, C_out, 1, 1, 0, 1, affine, track_running_stats)
        if mode == "avg":
            self.op = nn.AvgPool2d(3, stride=stride, padding=1, count_include_pad=False)
        elif mode == "max":
            self.op = nn.MaxPool2d(3, stride=stride, padding=1)
        else:
            raise ValueError(f"Invalid mode={mode} in POOLING")

    def forward(self, inputs):
        if self.preprocess:
            x = self.preprocess(inputs)
        else:
            x = inputs
        return self.op(x)


class Identity(nn.Module):
    def forward(self, x):
        return x


class Zero(nn.Module):
    def __init__(self, C_in, C_out, stride):
        super().__init__()
        self.C_in = C_in
        self.C_out = C_out
        self.stride = stride
        self.is_zero = True

    def forward(self, x):
        if self.C_in == self.C_out:
            if self.stride == 1:
                return x.mul(0.)
            return x[:, :, ::self.stride, ::self.stride].mul(0.)
        shape = list(x.shape)
        shape[1] = self.C_out
        zeros = x.new_zeros(shape, dtype=x.dtype, device=x.device)
        return zeros  # noqa: RET504

    def extra_repr(self):
        return f"C_in={self.C_in}, C_out={self.C_out}, stride={self.stride}"


class FactorizedReduce(nn.Module):
    def __init__(self, C_in, C_out, stride, affine, track_running_stats):
        super().__init__()
        self.stride = stride
        self.C_in = C_in
        self.C_out = C_out
        self.relu = nn.ReLU(inplace=False)
        if stride == 2:
            C_outs = [C_out // 2, C_out - C_out // 2]
            self.convs = nn.ModuleList()
            for i in range(2):
                self.convs.append(
                    nn.Conv2d(C_in, C_outs[i], 1, stride=stride, padding=0, bias=not affine)
                )
            self.pad = nn.ConstantPad2d((0, 1, 0, 1), 0)
        elif stride == 1:
            self.conv = nn.Conv2d(C_in, C_out, 1, stride=stride, padding=0, bias=not affine)
        else:
            raise ValueError(f"Invalid stride : {stride}")
        self.bn = nn.BatchNorm2d(C_out, affine=affine, track_running_stats=track_running_stats)

    def forward(self, x):
        if self.stride == 2:
            x = self.relu(x)
            y = self.pad(x)
            out = torch.cat([self.convs[0](x), self.convs[1](y[:, :, 1:, 1:])], dim=1)
        else:
            out = self.conv(x)
        out = self.bn(out)
        return out  # noqa: RET504


# The search networks


class SearchCell(nn.Module):
    def __init__(
        self, C_in, C_out, stride, max_nodes, op_names, affine=False, track_running_stats=True
    ):
        super().__init__()

        self.op_names = deepcopy(op_names)
        self.edges = nn.ModuleDict()
        self.max_nodes = max_nodes
        self.in_dim = C_in
        self.out_dim = C_out
        for i in range(1, max_nodes):
            for j in range(i):
                node_str = f"{i:}<-{j:}"
                first = (C_in, C_out, stride) if j == 0 else (C_out, C_out, 1)
                xlists = [OPS[name](*first, affine, track_running_stats) for name in op_names]
                self.edges[node_str] = nn.ModuleList(xlists)
        self.edge_keys = sorted(list(self.edges.keys()))  # noqa: C414
        self.edge2index = {key: i for i, key in enumerate(self.edge_keys)}
        self.num_edges = len(self.edges)

    def forward(self, inputs, weightss):
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            inter_nodes = []
            for j in range(i):
                node_str = f"{i:}<-{j:}"
                weights = weightss[self.edge2index[node_str]]
                inter_nodes.append(
                    sum(layer(nodes[j]) * w for layer, w in zip(self.edges[node_str], weights))
                )
            nodes.append(sum(inter_nodes))
        return nodes[-1]

    def forward_gdas(self, inputs, hardwts, index):
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            inter_nodes = []
            for j in range(i):
                node_str = f"{i:}<-{j:}"
                weights = hardwts[self.edge2index[node_str]]
                argmaxs = index[self.edge2index[node_str]].item()
                weigsum = sum(
                    weights[_ie] * edge(nodes[j]) if _ie == argmaxs else weights[_ie]
                    for _ie, edge in enumerate(self.edges[node_str])
                )
                inter_nodes.append(weigsum)
            nodes.append(sum(inter_nodes))
        return nodes[-1]

    def forward_joint(self, inputs, weightss):
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            inter_nodes = []
            for j in range(i):
                node_str = f"{i:}<-{j:}"
                weights = weightss[self.edge2index[node_str]]
                aggregation = (
                    sum(layer(nodes[j]) * w for layer, w in zip(self.edges[node_str], weights))
                    / weights.numel()
                )
                inter_nodes.append(aggregation)
            nodes.append(sum(inter_nodes))
        return nodes[-1]

    def forward_urs(self, inputs):
        """Uniformly random, until one edge at least does something."""
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            while True:
                sops, has_non_zero = [], False
                for j in range(i):
                    node_str = f"{i:}<-{j:}"
                    candidates = self.edges[node_str]
                    select_op = random.choice(candidates)
                    sops.append(select_op)
                    if not hasattr(select_op, "is_zero") or select_op.is_zero is False:
                        has_non_zero = True
                if has_non_zero:
                    break
            inter_nodes = []
            for j, select_op in enumerate(sops):
                inter_nodes.append(select_op(nodes[j]))
            nodes.append(sum(inter_nodes))
        return nodes[-1]

    def forward_select(self, inputs, weightss):
        """The operation with the largest weight, on every edge."""
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            inter_nodes = []
            for j in range(i):
                node_str = f"{i:}<-{j:}"
                weights = weightss[self.edge2index[node_str]]
                inter_nodes.append(self.edges[node_str][weights.argmax().item()](nodes[j]))
            nodes.append(sum(inter_nodes))
        return nodes[-1]

    def forward_dynamic(self, inputs, structure):
        """The operations that `structure` names: ((name, j), ...) for every node."""
        nodes = [inputs]
        for i in range(1, self.max_nodes):
            cur_op_node = structure[i - 1]
            inter_nodes = []
            for op_name, j in cur_op_node:
                node_str = f"{i:}<-{j:}"
                op_index = self.op_names.index(op_name)
                inter_nodes.append(self.edges[node_str][op_index](nodes[j]))
            nodes.append(sum(inter_nodes))
        return nodes[-1]


class TinyNetwork(nn.Module):
    """What all search networks share; each has a forward of its own."""

    def __init__(
        self,
        C,
        N,
        max_nodes,
        num_classes,
        search_space,
        affine=False,
        track_running_stats=True,
    ):
        super().__init__()
        self._C = C
        self._layerN = N
        self.max_nodes = max_nodes
        self.stem = nn.Sequential(
            nn.Conv2d(3, C, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(C)
        )

        layer_channels = [C] * N + [C * 2] + [C * 2] * N + [C * 4] + [C * 4] * N
        layer_reductions = [False] * N + [True] + [False] * N + [True] + [False] * N

        C_prev, num_edge, edge2index = C, None, None
        self.cells = nn.ModuleList()
        for C_curr, reduction in zip(layer_channels, layer_reductions):
            if reduction:
                cell = ResNetBasicblock(C_prev, C_curr, 2)
            else:
                cell = SearchCell(
                    C_prev, C_curr, 1, max_nodes, search_space, affine, track_running_stats
                )
                if num_edge is None:
                    num_edge, edge2index = cell.num_edges, cell.edge2index
            self.cells.append(cell)
            C_prev = cell.out_dim
        self.op_names = deepcopy(search_space)
        self._Layer = len(self.cells)
        self.edge2index = edge2index
        self.lastact = nn.Sequential(nn.BatchNorm2d(C_prev), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        self.arch_parameters = nn.Parameter(1e-3 * torch.randn(num_edge, len(search_space)))

    def get_weights(self):
        xlist = list(self.stem.parameters()) + list(self.cells.parameters())
        xlist += list(self.lastact.parameters()) + list(self.global_pooling.parameters())
        xlist += list(self.classifier.parameters())
        return xlist

    def get_alphas(self):
        return [self.arch_parameters]

    def genotype(self):
        genotypes = []
        for i in range(1, self.max_nodes):
            xlist = []
            for j in range(i):
                node_str = f"{i:}<-{j:}"
                with torch.no_grad():
                    weights = self.arch_parameters[self.edge2index[node_str]]
                    op_name = self.op_names[weights.argmax().item()]
                xlist.append((op_name, j))
            genotypes.append(tuple(xlist))
        return tuple(genotypes)

    def _head(self, feature):
        out = self.lastact(feature)
        out = self.global_pooling(out)
        out = out.view(out.size(0), -1)
        logits = self.classifier(out)
        return out, logits


class TinyNetworkDarts(TinyNetwork):
    def forward(self, inputs):
        alphas = nn.functional.softmax(self.arch_parameters, dim=-1)

        feature = self.stem(inputs)
        for _, cell in enumerate(self.cells):
            if isinstance(cell, SearchCell):
                feature = cell(feature, alphas)
            else:
                feature = cell(feature)

        out = self.lastact(feature)
        out = self.global_pooling(out)
        out = out.view(out.size(0), -1)
        logits = self.classifier(out)

        return out, logits


class TinyNetworkGDAS(TinyNetwork):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tau = 10

    def set_tau(self, tau):
        self.tau = tau

    def get_tau(self):
        return self.tau

    def forward(self, inputs):
        while True:
            gumbels = -torch.empty_like(self.arch_parameters).exponential_().log()
            logits = (self.arch_parameters.log_softmax(dim=1) + gumbels) / self.tau
            probs = nn.functional.softmax(logits, dim=1)
            index = probs.max(-1, keepdim=True)[1]
            one_h = torch.zeros_like(logits).scatter_(-1, index, 1.0)
            hardwts = one_h - probs.detach() + probs
            if (
                torch.isinf(gumbels).any()
                or torch.isinf(probs).any()
                or torch.isnan(probs).any()
            ):
                continue
            break

        feature = self.stem(inputs)
        for _, cell in enumerate(self.cells):
            if isinstance(cell, SearchCell):
                feature = cell.forward_gdas(feature, hardwts, index)
            else:
                feature = cell(feature)
        return self._head(feature)


class TinyNetworkSETN(TinyNetwork):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.mode = "urs"
        self.dynamic_cell = None

    def set_cal_mode(self, mode, dynamic_cell=None):
        assert mode in ["urs", "joint", "select", "dynamic"]
        self.mode = mode
        if mode == "dynamic":
            self.dynamic_cell = deepcopy(dynamic_cell)
        else:
            self.dynamic_cell = None

    def forward(self, inputs):
        alphas = nn.functional.softmax(self.arch_parameters, dim=-1)
        with torch.no_grad():
            alphas_cpu = alphas.detach().cpu()

        feature = self.stem(inputs)
        for _, cell in enumerate(self.cells):
            if isinstance(cell, SearchCell):
                if self.mode == "urs":
                    feature = cell.forward_urs(feature)
                elif self.mode == "select":
                    feature = cell.forward_select(feature, alphas_cpu)
                elif self.mode == "joint":
                    feature = cell.forward_joint(feature, alphas)
                elif self.mode == "dynamic":
                    feature = cell.forward_dynamic(feature, self.dynamic_cell)
                else:
                    raise ValueError(f"invalid mode={self.mode}")
            else:
                feature = cell(feature)
        return self._head(feature)


class WideningNetwork(nn.Module):
    """One search cell alone that changes the channels: zeros are allocated, pools preprocess."""

    def __init__(self, C_in, C_out, max_nodes=3, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, C_in, 3, padding=1, bias=False)
        self.cell = SearchCell(C_in, C_out, 1, max_nodes, NAS_BENCH_201)
        self.classifier = nn.Linear(C_out, num_classes)
        self.arch_parameters = nn.Parameter(
            1e-3 * torch.randn(self.cell.num_edges, len(NAS_BENCH_201))
        )

    def get_alphas(self):
        return [self.arch_parameters]

    def forward(self, inputs):
        alphas = nn.functional.softmax(self.arch_parameters, dim=-1)
        feature = self.cell(self.stem(inputs), alphas).mean((2, 3))
        return feature, self.classifier(feature)


# The final networks


class InferCell(nn.Module):
    def __init__(self, genotype, C_in, C_out, stride, affine=True, track_running_stats=True):
        super().__init__()
        self.layers = nn.ModuleList()
        self.node_IN = []
        self.node_IX = []
        self.genotype = deepcopy(genotype)
        for node_info in genotype:
            cur_index = []
            cur_innod = []
            for op_name, op_in in node_info:
                first = (C_in, C_out, stride) if op_in == 0 else (C_out, C_out, 1)
                layer = OPS[op_name](*first, affine, track_running_stats)
                cur_index.append(len(self.layers))
                cur_innod.append(op_in)
                self.layers.append(layer)
            self.node_IX.append(cur_index)
            self.node_IN.append(cur_innod)
        self.nodes = len(genotype) + 1
        self.in_dim = C_in
        self.out_dim = C_out

    def forward(self, inputs):
        nodes = [inputs]
        for node_layers, node_innods in zip(self.node_IX, self.node_IN):
            node_feature = sum(
                self.layers[_il](nodes[_ii]) for _il, _ii in zip(node_layers, node_innods)
            )
            nodes.append(node_feature)
        return nodes[-1]


def drop_path(x, drop_prob):
    if drop_prob > 0.:
        keep_prob = 1. - drop_prob
        mask = x.new_zeros(x.size(0), 1, 1, 1)
        mask = mask.bernoulli_(keep_prob)
        x = torch.div(x, keep_prob)
        x.mul_(mask)
    return x


class FinalNetwork(nn.Module):
    """Training gives (feature, [logits, auxiliary logits]), eval() gives (feature, logits)."""

    def __init__(self, C, N, genotype, num_classes, auxiliary):
        super().__init__()
        self._C = C
        self._layerN = N
        self.stem = nn.Sequential(
            nn.Conv2d(3, C, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(C)
        )
        layer_channels = [C] * N + [C * 2] + [C * 2] * N + [C * 4] + [C * 4] * N
        layer_reductions = [False] * N + [True] + [False] * N + [True] + [False] * N

        C_prev = C
        self.cells = nn.ModuleList()
        for C_curr, reduction in zip(layer_channels, layer_reductions):
            if reduction:
                cell = ResNetBasicblock(C_prev, C_curr, 2, True)
            else:
                cell = InferCell(genotype, C_prev, C_curr, 1)
            self.cells.append(cell)
            C_prev = cell.out_dim
        self._Layer = len(self.cells)
        if auxiliary:
            self.auxiliary_head = nn.Sequential(
                nn.ReLU(inplace=True),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(C_prev, num_classes),
            )
        else:
            self.auxiliary_head = None
        self.lastact = nn.Sequential(nn.BatchNorm2d(C_prev), nn.ReLU(inplace=True))
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)
        self.drop_path_prob = 0.

    def update_drop_path(self, drop_path_prob):
        self.drop_path_prob = drop_path_prob

    def auxiliary_param(self):
        if self.auxiliary_head is None:
            return []
        return list(self.auxiliary_head.parameters())

    def forward(self, inputs):
        feature, logits_aux = self.stem(inputs), None
        for i, cell in enumerate(self.cells):
            feature = cell(feature)
            if self.training and self.drop_path_prob > 0.:
                feature = drop_path(feature, self.drop_path_prob)
            if (
                self.auxiliary_head is not None
                and i == self._Layer * 2 // 3
                and self.training
            ):
                logits_aux = self.auxiliary_head(feature)
        out = self.lastact(feature)
        out = self.global_pooling(out)
        out = out.view(out.size(0), -1)
        logits = self.classifier(out)
        if logits_aux is None:
            return out, logits
        return out, [logits, logits_aux]


GENOTYPE = (
    (("nor_conv_3x3", 0),),
    (("avg_pool_3x3", 0), ("skip_connect", 1)),
    (("skip_connect", 0), ("nor_conv_1x1", 1), ("none", 2)),
)


def search_network(
    C=4, layers=3, max_nodes=4, num_classes=10, kind=TinyNetworkDarts, track_running_stats=True
):
    """`layers`: cells in all, a third of them before each residual block."""
    return kind(
        C,
        layers // 3,
        max_nodes,
        num_classes,
        NAS_BENCH_201,
        track_running_stats=track_running_stats,
    )


def setn_network(mode, **kwargs):
    net = search_network(kind=TinyNetworkSETN, **kwargs)
    net.set_cal_mode(mode, GENOTYPE if mode == "dynamic" else None)
    return net


def final_network(C=4, layers=3, num_classes=10, auxiliary=True, genotype=GENOTYPE):
    return FinalNetwork(C, layers // 3, genotype, num_classes, auxiliary)


def example_inputs():
    return (torch.randn(2, 3, 16, 16),)
