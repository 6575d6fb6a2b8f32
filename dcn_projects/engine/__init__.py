"""Training, evaluation and drawing from a command line or a program of the user's own."""

from dcn_projects.lazy_import import lazy_attributes

# Name -> the module that defines it, which is imported when the name is first used.
_MODULES = {
    "MetricPrinter": "metric_printer",
    "OffsetStatistics": "offset_statistics",
    "OBJECT_EVALUATORS": "tasks",
    "PIXEL_EVALUATORS": "tasks",
    "TASKS": "tasks",
    "Task": "tasks",
    "Trainer": "trainer",
    "build_predictor": "predictor",
    "check_augmentation": "check_config",
    "check_classes": "check_config",
    "check_data": "data_checks",
    "check_keys": "check_config",
    "check_kind": "check_config",
    "check_preprocessing": "check_config",
    "check_training": "check_config",
    "class_order": "classes_by_name",
    "draw_predictions": "drawing",
    "last_checkpoint": "output_checkpoints",
    "launch": "launcher",
    "load_predictor": "predictor",
    "main": "run",
    "mirrored_output_dir": "output_dir",
    "option_pairs": "options",
    "parse_arguments": "arguments",
    "predict": "run",
    "read_config": "config",
    "register_task": "tasks",
    "run_program": "run",
    "setup": "run",
    "task_of": "tasks",
    "weights_to_evaluate": "output_checkpoints",
}

__all__ = list(_MODULES)
__getattr__, __dir__ = lazy_attributes(__name__, _MODULES)
