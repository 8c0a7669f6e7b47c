"""The measurement of COCO's metrics."""

from src.cli.everything import scoring
from src.cli.everything.figures import Settings
from src.data.evaluation import CocoEvaluator


def test_time_and_memory_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "IMAGES", 12)
    seconds, memory = scoring.measure(Settings(tmp_path))
    assert seconds.row == memory.row == 4
    assert (seconds.unit, memory.unit) == ("CPU seconds", "MB")
    assert (seconds.target, memory.target) == (18.0, 800.0)
    assert seconds.value > 0


def test_synthetic_detections_find_some_objects_and_not_all():
    coco_gt, detections = scoring.synthetic_detections(20)
    assert len(coco_gt["annotations"]) == 20 * scoring.OBJECTS
    evaluator = CocoEvaluator(coco_gt)
    evaluator.update(detections)
    metrics = evaluator.metrics()
    assert 0 < metrics["AP"] < 0.9
    assert 0.3 < metrics["AR100"] < 1
