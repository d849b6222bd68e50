//! Work that is recorded and given again: on a GPU, and on an emulated one where there is none.
#![allow(missing_docs, clippy::single_range_in_vec_init)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use half::f16;
use imprompt_cuda::{Buffer, Device, Feed, Graph, Part, Pitch, Ranking, Stream, Table};
use imprompt_cuda_emulated::Gpu;
use imprompt_error::{Error, Kind, Result};

const HALF: Pitch = Pitch { rows: 4, width: 8, stride: 8 };

fn stream() -> Stream {
    Device::open(0).unwrap().stream().unwrap()
}

/// 64 bytes on the device, of which the first half is `value`.
fn halves(stream: &Stream, value: u8) -> Buffer {
    let buffer = stream.zeros(64).unwrap();
    write(stream, &buffer, value);
    buffer
}

/// Makes the first half `value`.
fn write(stream: &Stream, buffer: &Buffer, value: u8) {
    stream.synchronize().unwrap();
    // SAFETY: the buffer is longer, and all work is done.
    unsafe { stream.device().write(buffer.address(), &[value; 32]) }.unwrap();
}

fn second(buffer: &Buffer) -> Vec<u8> {
    let mut into = vec![0; 32];
    buffer.span(32, 32).unwrap().read(&mut into).unwrap();
    into
}

fn launch(graph: &mut Graph) {
    // SAFETY: the tests keep the buffer that was recorded.
    unsafe { graph.launch() }.unwrap();
}

#[test]
fn what_is_recorded_is_done_when_it_is_launched() {
    let _gpu = Gpu::new();
    let stream = stream();
    let mut buffer = halves(&stream, 1);
    let copy = |buffer: &mut Buffer| stream.record(|| stream.copy_rows(buffer, 0, 32, HALF));
    let mut graph = copy(&mut buffer).unwrap().unwrap();
    assert_eq!(second(&buffer), [0; 32], "nothing was done");
    for value in 1..4 {
        write(&stream, &buffer, value);
        launch(&mut graph);
        assert_eq!(second(&buffer), [value; 32]);
    }
    // A second one, beside the first, and one of several pieces.
    let mut other = copy(&mut buffer).unwrap().unwrap();
    drop(graph);
    write(&stream, &buffer, 9);
    launch(&mut other);
    assert_eq!(second(&buffer), [9; 32]);
    let quarter = Pitch { rows: 1, width: 16, stride: 16 };
    let both = stream.record(|| {
        stream.copy_rows(&mut buffer, 0, 16, quarter)?;
        stream.copy_rows(&mut buffer, 16, 48, quarter)
    });
    let mut both = both.unwrap().unwrap();
    launch(&mut both);
    // Given, and not needed any more.
    drop(both);
    assert_eq!(second(&buffer), [9; 32]);
}

#[test]
fn other_work_goes_on_meanwhile() {
    let _gpu = Gpu::new();
    let (here, other) = (stream(), stream());
    let mut buffer = halves(&here, 1);
    let values = [f16::ONE; 100];
    let mut table = None;
    let mut read = [0; 32];
    let graph = here.record(|| {
        here.copy_rows(&mut buffer, 0, 32, HALF)?;
        // What an instance does that is loaded beside the one that records.
        table = Some(Arc::new(Table::upload(&other, &[&values], 10)?));
        let mut feed = Feed::new(&other)?;
        feed.spans(&[Part::Host(&[7; 32])])?[0].read(&mut read)?;
        other.device().memory().map(drop)
    });
    let mut graph = graph.unwrap().unwrap();
    assert_eq!(read, [7; 32]);
    launch(&mut graph);
    assert_eq!(second(&buffer), [1; 32]);
    let mut ranking = Ranking::new(&other).unwrap();
    ranking.compare(&table.unwrap(), &[0..10], &[0.5; 10]).unwrap();
    assert_eq!(ranking.similarities().unwrap(), [5.0; 10]);
}

#[test]
fn nothing_makes_no_recording() {
    let _gpu = Gpu::new();
    let stream = stream();
    assert!(stream.record(|| Ok(())).unwrap().is_none());
    let mut buffer = halves(&stream, 1);
    let none = Pitch { rows: 0, ..HALF };
    assert!(stream.record(|| stream.copy_rows(&mut buffer, 0, 32, none)).unwrap().is_none());
}

#[test]
fn the_hosts_memory_is_not_recorded() {
    let _gpu = Gpu::new();
    let stream = stream();
    let mut feed = Feed::new(&stream).unwrap();
    let mut load = |value: u8, is_recorded: bool| {
        let mut address = 0;
        let bytes = [value; 100];
        let mut give = || {
            address = feed.load(&[Part::Host(&bytes)])?.next().unwrap_or(0);
            Ok(())
        };
        if is_recorded {
            return stream.record(give).map(|graph| (graph.is_some(), Vec::new()));
        }
        give()?;
        let mut found = vec![0; 100];
        // SAFETY: the feed's memory, as long as it is not given another load.
        unsafe { stream.read(address, &mut found)? };
        Ok((false, found))
    };
    // Memory is not allocated in between.
    assert_eq!(load(1, true).unwrap_err().kind(), Kind::Internal);
    assert_eq!(load(2, false).unwrap(), (false, vec![2; 100]));
    assert_eq!(load(3, true).unwrap(), (false, Vec::new()), "host to device");
    // As before.
    assert_eq!(load(4, false).unwrap(), (false, vec![4; 100]));
    let larger = [5; 5000];
    let grown = stream.record(|| feed.load(&[Part::Host(&larger)]).map(drop));
    assert_eq!(grown.unwrap_err().kind(), Kind::Internal);
    let mut found = vec![0; 5000];
    feed.spans(&[Part::Host(&larger)]).unwrap()[0].read(&mut found).unwrap();
    assert_eq!(found, larger);
    assert!(stream.record(|| feed.load(&[Part::Host(&larger)]).map(drop)).unwrap().is_none());
    drop(feed);
}

#[test]
fn what_can_not_be_recorded_is_said() {
    let _gpu = Gpu::new();
    let stream = stream();
    let mut buffer = halves(&stream, 1);
    let mut into = [0; 32];
    let mut refused = |give: &mut dyn FnMut() -> Result<()>| {
        let error = stream.record(&mut *give).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "{error}");
        // The stream is as it was.
        stream.copy_rows(&mut buffer, 0, 32, HALF).unwrap();
        assert_eq!(second(&buffer), [1; 32]);
        error.message().to_owned()
    };
    refused(&mut || stream.zeros(10).map(drop));
    refused(&mut || stream.synchronize());
    let other = halves(&stream, 2);
    refused(&mut || other.span(0, 32)?.read(&mut into));
    let given = refused(&mut || Err(Error::internal("by the caller")));
    assert_eq!(given, "by the caller");
    assert_eq!(into, [0; 32]);
}

#[test]
fn a_panic_ends_the_recording() {
    let _gpu = Gpu::new();
    let stream = Device::open(0).unwrap().stream().unwrap();
    let record = || stream.record(|| panic!("a test's own"));
    assert!(catch_unwind(AssertUnwindSafe(record)).is_err());
    let buffer = stream.zeros(10).unwrap();
    let mut into = [1; 10];
    buffer.span(0, 10).unwrap().read(&mut into).unwrap();
    assert_eq!(into, [0; 10]);
}
