//! How far a training is.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar on a terminal, and a line per epoch elsewhere.
pub struct Progress {
    bar: ProgressBar,
    name: String,
    epochs: u32,
}

impl Progress {
    pub fn new(name: &str, epochs: u32, batches: u64) -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {elapsed}, {eta} to go")
            .expect("the template is a constant, and valid");
        let bar = ProgressBar::new(u64::from(epochs) * batches).with_style(style);
        bar.set_message(format!("{name}: epoch 1/{epochs}"));
        Self { bar, name: name.to_owned(), epochs }
    }

    pub fn end_step(&self) {
        self.bar.inc(1);
    }

    /// Whether somebody sees the running loss. On a GPU it costs a wait to read it.
    pub fn is_seen(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// The mean loss of the epoch up to now.
    pub fn running(&self, epoch: u32, loss: f64) {
        self.bar.set_message(format!("{}: epoch {epoch}/{}, loss {loss:.5}", self.name, self.epochs));
    }

    /// The mean loss of an epoch, and what it is worth on held-out data.
    pub fn end_epoch(&self, epoch: u32, loss: f64, score: f64) {
        let message = format!("{}: epoch {epoch}/{} had loss {loss:.5}, score {score:.4}", self.name, self.epochs);
        if self.bar.is_hidden() {
            eprintln!("{message}");
        }
        self.bar.set_message(message);
    }
}

impl Drop for Progress {
    /// Leaves a clean line, for the result and for an error alike.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
