//! A call with classes as targets, as its kernels know it.

use crate::kernels::cpu::kinds::Wide;
use crate::kernels::cpu::rows::job::Job;

/// A call, which all threads share.
pub(super) struct Call<'a, W> {
    pub(super) job: &'a Job<'a, W>,
    /// 1 − ε of the label smoothing ε: the share of the target's class that is not spread.
    pub(super) own: f64,
    /// The sum of the weights of all classes; 0 without smoothing.
    pub(super) total: f64,
    /// ε / C: the share of each class in a smoothed target.
    pub(super) spread: f64,
}

impl<'a, W: Wide> Call<'a, W> {
    pub(super) fn new(job: &'a Job<'a, W>, smoothing: f64) -> Self {
        let total = job.options.total_of_spread(smoothing, job.classes);
        Self { job, own: 1.0 - smoothing, total, spread: smoothing / job.classes as f64 }
    }

    /// The weight of the target's own term, (1 − ε) w\[t\], where the target is this class.
    pub(super) fn weight(&self, class: usize) -> W {
        W::from_f64(self.own * self.job.options.weight_of(class))
    }
}
