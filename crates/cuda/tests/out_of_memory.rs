//! Every allocation that can fail, where the driver is emulated: a real one does not fail on demand.
#![allow(missing_docs, clippy::single_range_in_vec_init)]

use std::sync::Arc;

use half::f16;
use imprompt_cuda::{Chunks, Device, Feed, Part, Pitch, Ranking, Table};
use imprompt_cuda_emulated::Gpu;
use imprompt_error::{Kind, Result};

/// All that allocates.
fn everything() -> Result<()> {
    let device = Device::open(0)?;
    let stream = device.stream()?;
    let mut buffer = stream.zeros(1000)?;
    let mut into = [0; 600];
    for length in [10, 600] {
        buffer.span(0, length)?.read(&mut into[..length])?;
    }
    let mut feed = Feed::new(&stream)?;
    for length in [10, 600, 20_000] {
        drop(feed.load(&[Part::Host(&vec![1; length])])?);
    }
    let half = Pitch { rows: 1, width: 500, stride: 500 };
    let graph = stream.record(|| stream.copy_rows(&mut buffer, 0, 500, half))?;
    if let Some(mut graph) = graph {
        // SAFETY: the buffer is where it was.
        unsafe { graph.launch()? };
    }
    let table = Arc::new(Table::upload(&stream, &[&[f16::ONE; 3000]], 10)?);
    let mut ranking = Ranking::new(&stream)?;
    for images in [1, 2] {
        ranking.compare(&table, &[0..300], &vec![1.0; images * 10])?;
        ranking.similarities()?;
        ranking.best(0..images * 300, Chunks { size: 100, keep: images * 5 }, false)?;
    }
    ranking.compare_texts(&[1.0; 10], 3)?;
    Ok(())
}

#[test]
fn every_allocation_may_fail() {
    let gpu = Gpu::new();
    let Some(driver) = gpu.emulated() else {
        println!("skipped: a GPU's driver does not fail on demand");
        return;
    };
    everything().unwrap();
    let count = driver.allocations();
    assert!(count > 20, "{count}");
    assert_eq!(driver.live(), [""; 0]);
    for number in 1..=count {
        driver.fail(number);
        let error = everything().unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfMemory, "allocation {number}: {error}");
        assert_eq!(driver.live(), [""; 0], "allocation {number}");
    }
    driver.fail(0);
    everything().unwrap();
}

#[test]
fn what_failed_can_be_asked_again() {
    let gpu = Gpu::new();
    let Some(driver) = gpu.emulated() else {
        println!("skipped: a GPU's driver does not fail on demand");
        return;
    };
    let stream = Device::open(0).unwrap().stream().unwrap();
    let mut feed = Feed::new(&stream).unwrap();
    let table = Arc::new(Table::upload(&stream, &[&[f16::ONE; 300]], 1).unwrap());
    let mut ranking = Ranking::new(&stream).unwrap();
    for number in 1..=3 {
        let given = vec![number as u8; 1000 << number];
        driver.fail(number);
        // An event, the memory, and that on the device.
        let error = feed.load(&[Part::Host(&given)]).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfMemory, "{error}");
        let mut into = vec![0; given.len()];
        feed.spans(&[Part::Host(&given)]).unwrap()[0].read(&mut into).unwrap();
        assert_eq!(into, given);
    }
    for number in 1..=4 {
        let images = vec![1.0; 1 << (2 * number)];
        driver.fail(number);
        // The products, the images' two memories with an event, or what is read back.
        let compared = ranking.compare(&table, &[0..300], &images);
        let error = compared.and_then(|()| ranking.similarities()).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfMemory, "{error}");
        ranking.compare(&table, &[0..300], &images).unwrap();
        assert_eq!(ranking.similarities().unwrap(), vec![1.0; 300 * images.len()]);
    }
    driver.fail(0);
}

#[test]
fn more_than_there_is_is_refused() {
    let gpu = Gpu::new();
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let error = stream.zeros(1 << 45).unwrap_err();
    assert_eq!(error.kind(), Kind::OutOfMemory);
    assert!(error.message().contains(&(1_u64 << 45).to_string()), "{error}");
    if gpu.emulated().is_some() {
        // Two copies of more than the cache are more than it has.
        assert_eq!(device.copy_rate().unwrap_err().kind(), Kind::OutOfMemory);
    }
    // The device is as it was.
    let buffer = stream.zeros(10).unwrap();
    let mut into = [1; 10];
    buffer.span(0, 10).unwrap().read(&mut into).unwrap();
    assert_eq!(into, [0; 10]);
}
