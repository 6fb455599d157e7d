//! Losses of segmentation: overlap of regions and distance of boundaries.
