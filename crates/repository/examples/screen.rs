//! What the int8 screen of a repository changes, and what it saves: a row of the table in
//! `docs/benchmarks.md` for modes best and negative.
//!
//! ```text
//! imprompt build ... --precision screen=int8 --out REPOSITORY
//! cargo run --release -p imprompt-repository --example screen -- REPOSITORY MAX_FLAVORS PICTURE...
//! ```

#[path = "../tests/agreement/mod.rs"]
mod agreement;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use agreement::{Comparer, Comparison, Step};
use imprompt_interrogate::Mode;
use imprompt_stage::Parameters;

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: screen REPOSITORY MAX_FLAVORS PICTURE...";
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let repository = arguments.next().ok_or(usage)?;
    let max = arguments.next().ok_or(usage)?.to_string_lossy().parse()?;
    let pictures: Vec<PathBuf> = arguments.collect();
    let mut comparer = Comparer::open(&repository, &Parameters::default())?;
    println!(
        "| mode | steps | candidates | best chosen | greatest loss | int8 alone | above the best, median, 99%, most | \
         scored again, mean, most | prompts equal | greatest loss | a step, exact / screened |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    for mode in [Mode::Best, Mode::Negative] {
        let mut comparisons = Vec::new();
        for picture in &pictures {
            comparisons.push(comparer.compare(&std::fs::read(picture)?, mode, Some(max))?);
            eprintln!("{} {}: {} steps", picture.display(), mode.name(), last(&comparisons));
        }
        println!("{}", row(mode, &comparisons));
    }
    Ok(())
}

fn last(comparisons: &[Comparison]) -> usize {
    comparisons.last().map_or(0, |comparison| comparison.steps.len())
}

fn row(mode: Mode, comparisons: &[Comparison]) -> String {
    let steps: Vec<Step> = comparisons.iter().flat_map(|one| one.steps.iter().copied()).collect();
    let count = |of: &dyn Fn(&Step) -> bool| steps.iter().filter(|step| of(step)).count();
    let mut above: Vec<usize> = steps.iter().map(|step| step.above).collect();
    above.sort_unstable();
    let quantile = |share: f64| {
        let place = (above.len() as f64 * share) as usize;
        above.get(place.min(above.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    let scored: usize = steps.iter().map(|step| step.scored).sum();
    let most = steps.iter().map(|step| step.scored).max().unwrap_or(0);
    let candidates = steps.iter().map(|step| step.candidates).max().unwrap_or(0);
    let loss = steps.iter().map(|step| step.loss).fold(0.0, f32::max);
    let equal = comparisons.iter().filter(|one| one.prompts[0] == one.prompts[1]).count();
    let lost = comparisons.iter().map(|one| match mode {
        Mode::Negative => one.similarities[0] - one.similarities[1],
        _ => one.similarities[1] - one.similarities[0],
    });
    let time = |which: usize| -> Duration { steps.iter().map(|step| step.times[which]).sum() };
    let (exact, screened) = (time(0).as_secs_f64(), time(1).as_secs_f64());
    format!(
        "| {} | {} | {candidates} | {} | {loss:.1e} | {} | {}, {}, {} | {:.0}, {most} | {equal} of {} | {:.1e} | {:.3} s / {:.3} s: {:.2}x |",
        mode.name(),
        steps.len(),
        count(&|step| step.is_equal),
        count(&|step| step.above == 0),
        quantile(0.5),
        quantile(0.99),
        above.last().copied().unwrap_or(0),
        scored as f64 / steps.len().max(1) as f64,
        comparisons.len(),
        lost.fold(0.0, f32::max),
        exact / steps.len().max(1) as f64,
        screened / steps.len().max(1) as f64,
        exact / screened.max(f64::MIN_POSITIVE),
    )
}
