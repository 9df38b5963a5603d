"""Published distillation methods, independent of stillhouse's code."""
