import pytest
import torch
from torch import nn

from src.zoo.dfine.denoising import make_denoising_queries
from tests.fixtures.detector import CLASSES, QUERIES, WIDTH, random_targets

EPS = 1e-5


def embedding():
    return nn.Embedding(CLASSES + 1, WIDTH, padding_idx=CLASSES)


def queries(targets, embed=None, **settings):
    defaults = {
        "num_classes": CLASSES,
        "num_queries": QUERIES,
        "num_denoising": 7,
        "label_noise_ratio": 0.0,
        "box_noise_scale": 0.0,
    }
    return make_denoising_queries(
        targets, embed or embedding(), **(defaults | settings)
    )


def boxes_of(denoising):
    return denoising.reference_unact.sigmoid()


def reference(
    targets, embed, num_denoising, label_noise_ratio, box_noise_scale
):
    """Return content and boxes from a loop over images and queries; draws come in the published order."""
    most = max(len(t["labels"]) for t in targets)
    groups = max(1, num_denoising // most)
    length = 2 * groups * most
    flips = torch.rand(len(targets), length)
    labels = torch.randint(
        0, CLASSES, (len(targets), length), dtype=torch.int32
    )
    signs = torch.randint(0, 2, (len(targets), length, 4)).float() * 2 - 1
    magnitudes = torch.rand(len(targets), length, 4)
    content, unact = (
        torch.zeros(len(targets), length, WIDTH),
        torch.zeros(len(targets), length, 4),
    )
    for image, target in enumerate(targets):
        for query in range(length):
            half, slot = query // most % 2, query % most
            is_padding = slot >= len(target["labels"])
            label = CLASSES if is_padding else int(target["labels"][slot])
            x, y, w, h = (
                [0.0] * 4 if is_padding else target["boxes"][slot].tolist()
            )
            if not is_padding and flips[image, query] < 0.5 * label_noise_ratio:
                label = int(labels[image, query])
            edges = [x - w / 2, y - h / 2, x + w / 2, y + h / 2]
            for edge in range(4):
                reach = (
                    (magnitudes[image, query, edge].item() + half)
                    * (w, h)[edge % 2]
                    / 2
                    * box_noise_scale
                )
                edges[edge] = min(
                    max(
                        edges[edge] + signs[image, query, edge].item() * reach,
                        0.0,
                    ),
                    1.0,
                )
            box = torch.tensor(
                [
                    (edges[0] + edges[2]) / 2,
                    (edges[1] + edges[3]) / 2,
                    abs(edges[2] - edges[0]),
                    abs(edges[3] - edges[1]),
                ]
            )
            unact[image, query] = torch.log(
                box.clamp(min=EPS) / (1 - box).clamp(min=EPS)
            )
            content[image, query] = embed.weight[label]
    return content, unact


@pytest.mark.parametrize("counts", [(3, 1), (0, 4), (2, 2, 2), (7,)])
def test_queries_equal_a_plain_reading_of_the_recipe(counts):
    targets, embed = random_targets(*counts), embedding()
    torch.manual_seed(5)
    expected_content, expected_unact = reference(targets, embed, 7, 0.5, 0.8)
    torch.manual_seed(5)
    ours = queries(targets, embed, label_noise_ratio=0.5, box_noise_scale=0.8)
    torch.testing.assert_close(ours.content, expected_content)
    torch.testing.assert_close(boxes_of(ours), expected_unact.sigmoid())


def test_groups_hold_positives_then_negatives_each_padded_to_the_fullest_image():
    targets, embed = random_targets(3, 1), embedding()
    ours = queries(targets, embed)  # 7 // 3 = 2 groups of 2 x 3
    labels = torch.tensor(
        [
            targets[0]["labels"].tolist() * 4,
            [int(targets[1]["labels"]), CLASSES, CLASSES] * 4,
        ]
    )
    assert torch.equal(ours.content, embed(labels))
    torch.testing.assert_close(
        boxes_of(ours)[0], targets[0]["boxes"].repeat(4, 1)
    )
    torch.testing.assert_close(
        boxes_of(ours)[1, ::3], targets[1]["boxes"].repeat(4, 1)
    )


def test_padding_is_the_embeddings_padding_row_and_a_box_of_no_size():
    ours = queries(
        random_targets(3, 1), label_noise_ratio=1.0, box_noise_scale=1.0
    )
    padding = torch.tensor([1, 2, 4, 5, 7, 8, 10, 11])
    assert not ours.content[1, padding].any()
    torch.testing.assert_close(
        boxes_of(ours)[1, padding],
        torch.full((8, 4), EPS),
        rtol=1e-3,
        atol=1e-7,
    )


def test_positive_queries_of_each_image_are_named_group_by_group():
    assert [
        index.tolist() for index in queries(random_targets(3, 1)).positive_idx
    ] == [
        [0, 1, 2, 6, 7, 8],
        [0, 6],
    ]


def test_an_image_without_objects_has_no_positive_queries():
    assert [
        index.tolist() for index in queries(random_targets(0, 2)).positive_idx
    ] == [
        [],
        [0, 1, 4, 5, 8, 9],
    ]


@pytest.mark.parametrize(
    ("counts", "num_denoising", "groups"),
    [
        ((3, 1), 7, 2),
        ((1, 1), 7, 7),
        ((9, 2), 7, 1),
        ((7,), 7, 1),
        ((3,), 100, 33),
    ],
)
def test_positives_are_shared_among_groups_of_which_there_is_at_least_one(
    counts, num_denoising, groups
):
    ours = queries(random_targets(*counts), num_denoising=num_denoising)
    assert (ours.num_groups, ours.content.shape[1]) == (
        groups,
        2 * groups * min(max(counts), num_denoising),
    )


def test_mask_blocks_other_groups_and_hides_all_of_them_from_matching_queries():
    ours, group_length, length = queries(random_targets(3, 1)), 6, 12
    expected = torch.zeros(length + QUERIES, length + QUERIES, dtype=torch.bool)
    for row in range(length + QUERIES):
        for column in range(length):  # matching queries may be seen by all
            expected[row, column] = (
                row >= length or row // group_length != column // group_length
            )
    assert torch.equal(ours.mask, expected)


@pytest.mark.parametrize("counts", [(0,), (0, 0, 0)])
def test_without_any_object_there_are_no_queries_but_the_embedding_stays_in_the_graph(
    counts,
):
    ours = queries(
        random_targets(*counts), label_noise_ratio=0.5, box_noise_scale=1.0
    )
    assert (
        ours.content.shape,
        ours.reference_unact.shape,
        ours.num_groups,
    ) == (
        (len(counts), 0, WIDTH),
        (len(counts), 0, 4),
        0,
    )
    assert ours.content.requires_grad
    assert ours.mask.shape == (QUERIES, QUERIES) and not ours.mask.any()
    assert [len(index) for index in ours.positive_idx] == [0] * len(counts)


def share_of_moved_edges(scale):
    """Return shifts of the edges of a small central box, in half sizes, for positives and negatives."""
    target = {
        "labels": torch.tensor([0]),
        "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.2]]),
    }
    boxes = boxes_of(
        queries([target], num_denoising=500, box_noise_scale=scale)
    )[0].double()
    half = torch.tensor([0.05, 0.1], dtype=torch.float64)
    low, high = boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2
    start, end = 0.5 - half, 0.5 + half
    kept, crossed = (
        torch.cat([low - start, high - end], 1),
        torch.cat([high - start, low - end], 1),
    )
    return kept.abs() / half.repeat(2), crossed.abs() / half.repeat(2)


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_edges_of_positives_move_by_less_than_a_half_size_times_the_scale(
    scale,
):
    moved = share_of_moved_edges(scale)[0][0::2]
    assert (
        moved.max() < scale * (1 + 1e-3)
        and moved.max() > 0.9 * scale
        and moved.min() < 0.1 * scale
    )


@pytest.mark.parametrize("scale", [0.4, 1.0])
def test_edges_of_negatives_move_by_one_to_two_half_sizes_times_the_scale(
    scale,
):
    kept, crossed = (moved[1::2] for moved in share_of_moved_edges(scale))

    def in_range(moved):  # low and high edge of one axis
        return (
            ((moved > scale * 0.999) & (moved < 2 * scale * 1.001))
            .unflatten(1, (2, 2))
            .all(1)
        )

    assert (in_range(kept) | in_range(crossed)).all()


def test_without_box_noise_negatives_are_the_boxes_too():
    kept, _ = share_of_moved_edges(0.0)
    assert kept.max() < 1e-4


def test_noised_boxes_stay_inside_the_image():
    target = {
        "labels": torch.tensor([0, 1]),
        "boxes": torch.tensor([[0.05, 0.95, 0.1, 0.1], [0.5, 0.5, 1.0, 1.0]]),
    }
    boxes = boxes_of(queries([target], num_denoising=200, box_noise_scale=1.0))
    corners = torch.cat(
        [
            boxes[..., :2] - boxes[..., 2:] / 2,
            boxes[..., :2] + boxes[..., 2:] / 2,
        ],
        -1,
    )
    assert corners.min() > -2 * EPS and corners.max() < 1 + 2 * EPS


@pytest.mark.parametrize("half", ["positives", "negatives"])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_half_of_the_ratio_of_labels_is_replaced_at_random(ratio, half):
    embed, count = embedding(), 8000
    target = {
        "labels": torch.tensor([2]),
        "boxes": torch.tensor([[0.5, 0.5, 0.1, 0.2]]),
    }
    content = queries(
        [target], embed, num_denoising=count, label_noise_ratio=ratio
    ).content[0, half == "negatives" :: 2]
    changed = (content != embed.weight[2]).any(-1).float().mean().item()
    expected = (
        0.5 * ratio * (CLASSES - 1) / CLASSES
    )  # a new label may be the old one
    assert changed == pytest.approx(
        expected, abs=4 * (expected * (1 - expected) / count) ** 0.5
    )


def test_gradients_reach_the_embedding_of_the_labels():
    embed, targets = (
        embedding(),
        [{"labels": torch.tensor([1, 3]), "boxes": torch.rand(2, 4)}],
    )
    queries(targets, embed).content.sum().backward()
    assert embed.weight.grad.any(-1).tolist() == [
        False,
        True,
        False,
        True,
        False,
        False,
    ]


# ---- crowded images ----


def test_of_a_crowded_image_as_many_objects_are_denoised_as_there_are_denoising_queries():
    targets = random_targets(3, 50)
    ours = queries(targets)
    assert ours.chosen[0] is None and len(ours.chosen[1]) == 7
    assert (
        len(set(ours.chosen[1].tolist())) == 7 and ours.content.shape[1] == 14
    )
    torch.testing.assert_close(
        boxes_of(ours)[1, :7], targets[1]["boxes"][ours.chosen[1]]
    )


def test_no_image_makes_more_denoising_queries_than_twice_their_number():
    assert (
        max(
            queries(random_targets(count)).content.shape[1]
            for count in (1, 3, 7, 8, 100, 1000)
        )
        <= 2 * 7
    )


def test_another_draw_denoises_other_objects():
    targets = random_targets(50)
    assert (
        queries(targets).chosen[0].tolist()
        != queries(targets).chosen[0].tolist()
    )
