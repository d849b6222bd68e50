//! What is told of the slots that the instances of a captioner share.

use std::sync::OnceLock;

use imprompt_caption::{Load, Watch};

/// Who watches the slots of a stage, once somebody does.
#[derive(Default)]
pub struct Slots(OnceLock<Box<dyn Watch>>);

impl Slots {
    /// Tells `watch` from now on, on the thread that decodes. Only the first one is told.
    pub fn watch(&self, watch: Box<dyn Watch>) {
        let _ = self.0.set(watch);
    }
}

impl Watch for Slots {
    fn load(&self, load: Load) {
        if let Some(watch) = self.0.get() {
            watch.load(load);
        }
    }

    fn restarted(&self) {
        if let Some(watch) = self.0.get() {
            watch.restarted();
        }
    }
}
