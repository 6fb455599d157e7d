//! Losses of object detection: boxes and their scores.
