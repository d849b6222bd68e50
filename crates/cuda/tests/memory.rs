//! What goes to a GPU's memory and comes back: on a GPU, and on an emulated one where there is none.
#![allow(missing_docs, clippy::single_range_in_vec_init)]

use std::sync::Arc;

use half::f16;
use imprompt_cuda::{Chunks, Device, Feed, Part, Pitch, Ranking, Span, Stream, Table};
use imprompt_cuda_emulated::Gpu;
use imprompt_error::Kind;

/// Bytes that differ from their neighbours, others with another seed.
fn bytes(count: usize, seed: usize) -> Vec<u8> {
    (0..count).map(|index| (index * 31 + index / 256 + seed * 101) as u8).collect()
}

/// The `length` bytes at `address`, which `stream` has been given the making of.
fn read(stream: &Stream, address: u64, length: usize) -> Vec<u8> {
    let mut into = vec![0; length];
    // SAFETY: the tests ask for what is there.
    unsafe { stream.read(address, &mut into) }.unwrap();
    into
}

/// `bytes` on the device, in memory of their own.
fn there(stream: &Stream, bytes: &[u8]) -> imprompt_cuda::Buffer {
    let buffer = stream.zeros(bytes.len()).unwrap();
    stream.synchronize().unwrap();
    // SAFETY: the buffer is as long, and nothing uses it yet.
    unsafe { stream.device().write(buffer.address(), bytes) }.unwrap();
    buffer
}

#[test]
fn a_device_says_what_it_is() {
    let gpu = Gpu::new();
    let count = Device::count().unwrap();
    assert!(count > 0);
    let error = Device::open(count).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(error.message().contains(&format!("shows {count}")), "{error}");
    let device = Device::open(count - 1).unwrap();
    assert_eq!(device.ordinal(), count - 1);
    let (free, all) = device.memory().unwrap();
    assert!(0 < free && free <= all);
    assert!(device.driver_version().unwrap().starts_with(char::is_numeric));
    if gpu.emulated().is_some() {
        assert_eq!((device.name(), count), ("Emulated GPU", 2));
        assert_eq!(device.compute_capability().to_string(), "7.5");
        let stream = device.stream().unwrap();
        let buffer = stream.zeros(1 << 20).unwrap();
        assert_eq!(device.memory().unwrap(), (free - (1 << 20), all));
        // Freed in its turn.
        drop(buffer);
        stream.synchronize().unwrap();
        assert_eq!(device.memory().unwrap(), (free, all));
    }
}

#[test]
fn zeros_are_zeros() {
    let _gpu = Gpu::new();
    let stream = Device::open(0).unwrap().stream().unwrap();
    for count in [1, 2, 255, 256, 70_000] {
        let buffer = stream.zeros(count).unwrap();
        assert_eq!(buffer.len(), count);
        assert!(!buffer.is_empty());
        assert_eq!(read(&stream, buffer.address(), count), vec![0; count]);
    }
    // Memory of no bytes has an address as well.
    let none = stream.zeros(0).unwrap();
    assert!(none.address() > 0);
    assert!(none.span(0, 0).unwrap().is_empty());
    none.span(0, 0).unwrap().read(&mut []).unwrap();
}

#[test]
fn what_is_written_is_read() {
    let _gpu = Gpu::new();
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let other = device.stream().unwrap();
    let buffer = stream.zeros(1000).unwrap();
    stream.synchronize().unwrap();
    // One behind the other: memory that is read into is used again, and grows.
    for (seed, count) in [10, 10, 1000, 3, 700].into_iter().enumerate() {
        let given = bytes(count, seed);
        // SAFETY: the buffer is as long; all work is waited for.
        unsafe { device.write(buffer.address(), &given) }.unwrap();
        assert_eq!(read(&stream, buffer.address(), count), given);
        // Written is written, for whichever stream.
        assert_eq!(read(&other, buffer.address(), count), given);
        let mut into = vec![0; count];
        // SAFETY: as above.
        unsafe { device.read(buffer.address(), &mut into) }.unwrap();
        assert_eq!(into, given);
    }
    // SAFETY: nothing is written or read.
    unsafe {
        device.write(buffer.address(), &[]).unwrap();
        device.read(buffer.address(), &mut []).unwrap();
    }
}

#[test]
fn spans_lie_inside() {
    let _gpu = Gpu::new();
    let stream = Device::open(0).unwrap().stream().unwrap();
    let given = bytes(100, 1);
    let buffer = there(&stream, &given);
    let span = buffer.span(10, 50).unwrap();
    assert_eq!((span.address(), span.len()), (buffer.address() + 10, 50));
    assert_eq!(span.stream().handle(), buffer.stream().handle());
    let mut into = [0; 50];
    span.read(&mut into).unwrap();
    assert_eq!(into, given[10..60]);
    let part = span.part(5, 20).unwrap();
    part.read(&mut into[..20]).unwrap();
    assert_eq!(into[..20], given[15..35]);
    assert!(span.part(0, 50).is_ok() && span.part(1, 50).is_err());
    assert!(span.part(50, 0).is_ok() && span.part(usize::MAX, 2).is_err());
    assert!(span.read(&mut into[..49]).is_err(), "room for fewer");
    let end = buffer.span(100, 0).unwrap();
    assert!(end.is_empty());
    for (start, length) in [(0, 101), (100, 1), (101, 0), (usize::MAX, 2)] {
        assert_eq!(buffer.span(start, length).unwrap_err().kind(), Kind::Internal);
    }
    // SAFETY: the buffer's memory, and its stream.
    let over = unsafe { Span::over(&stream, buffer.address() + 99, 1) };
    over.read(&mut into[..1]).unwrap();
    assert_eq!(into[0], given[99]);
}

/// Loads `parts` and says what has come there.
fn load(feed: &mut Feed, stream: &Stream, parts: &[&[u8]]) -> Vec<Vec<u8>> {
    let lengths = parts.iter().map(|part| part.len());
    let parts: Vec<Part<'_>> = parts.iter().map(|part| Part::Host(part)).collect();
    let addresses: Vec<u64> = feed.load(&parts).unwrap().collect();
    assert!(addresses.iter().all(|address| address.is_multiple_of(256)));
    addresses.into_iter().zip(lengths).map(|(at, length)| read(stream, at, length)).collect()
}

#[test]
fn inputs_arrive() {
    let _gpu = Gpu::new();
    let stream = Device::open(0).unwrap().stream().unwrap();
    let mut feed = Feed::new(&stream).unwrap();
    let (short, long) = (bytes(10, 1), bytes(5000, 2));
    let cases: [&[&[u8]]; 9] = [
        &[],
        &[&[]],
        &[&short],
        &[&short, &long],
        &[&long, &[], &short],
        &[&[], &[]],
        &[&long[..256], &long[256..257], &short],
        &[&long, &long, &long, &long, &short],
        &[&short, &[]],
    ];
    for parts in cases {
        assert_eq!(load(&mut feed, &stream, parts), parts);
        let of_host: Vec<Part<'_>> = parts.iter().map(|part| Part::Host(part)).collect();
        let spans = feed.spans(&of_host).unwrap();
        assert_eq!(spans.len(), parts.len());
        for (span, part) in spans.iter().zip(parts) {
            let mut into = vec![0; part.len()];
            span.read(&mut into).unwrap();
            assert_eq!(into, *part);
        }
    }
}

#[test]
fn inputs_that_lie_on_the_device_arrive_beside_those_of_the_host() {
    let _gpu = Gpu::new();
    let device = Device::open(0).unwrap();
    let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
    let mut feed = Feed::new(&stream).unwrap();
    let mut before = Vec::new();
    for round in 0..3 {
        let (short, long) = (bytes(10, round), bytes(5000, round + 1));
        let (one, two) = (there(&other, &short), there(&other, &long));
        let (own, none) = (there(&stream, &long), Part::There(Vec::new()));
        let pieces = vec![
            two.span(100, 300).unwrap(),
            one.span(3, 7).unwrap(),
            one.span(10, 0).unwrap(),
            own.span(7, 1).unwrap(),
        ];
        let parts = [
            Part::There(pieces),
            Part::Host(&short),
            none,
            Part::There(vec![two.span(0, 5000).unwrap()]),
            Part::Host(&long),
        ];
        let addresses: Vec<u64> = feed.load(&parts).unwrap().collect();
        // They are read when the call is over: what they were in may become something else.
        drop(parts);
        for buffer in [&one, &two] {
            // SAFETY: the buffer is as long, and nobody's any more.
            unsafe { device.write(buffer.address(), &vec![99; buffer.len()]) }.unwrap();
        }
        drop((one, two, own));
        other.synchronize().unwrap();
        let pieces = [&long[100..400], &short[3..], &long[7..8]].concat();
        for (address, expected) in addresses.iter().zip([&pieces, &short, &vec![], &long, &long]) {
            assert!(address.is_multiple_of(256));
            assert_eq!(read(&stream, *address, expected.len()), *expected);
        }
        // A recorded run finds them where they were.
        assert!(round == 0 || before == addresses);
        before = addresses;
    }
}

#[test]
fn inputs_of_another_device_are_refused() {
    let gpu = Gpu::new();
    if gpu.emulated().is_none() {
        return;
    }
    let [stream, other] = [0, 1].map(|ordinal| Device::open(ordinal).unwrap().stream().unwrap());
    let mut feed = Feed::new(&stream).unwrap();
    let foreign = there(&other, &bytes(10, 1));
    let part = Part::There(vec![foreign.span(0, 10).unwrap()]);
    let error = feed.load(&[part]).map(drop).unwrap_err();
    assert_eq!(error.message(), "an input on GPU 1, the run is on GPU 0");
}

#[test]
fn copies_inside_the_device_are_there_when_they_are_given_back() {
    let _gpu = Gpu::new();
    let device = Device::open(0).unwrap();
    let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
    for length in [0, 1, 3000] {
        let given = bytes(length, length);
        let source = there(&other, &given);
        // SAFETY: the source is as long and written.
        let copy = unsafe { stream.copy_of(source.address(), length) }.unwrap();
        drop(source);
        assert_eq!(read(&other, copy.address(), length), given);
        let target = there(&other, &vec![7; length + 1]);
        // SAFETY: the target is longer and nothing uses it.
        unsafe { copy.span(0, length).unwrap().copy_to(target.address()) }.unwrap();
        drop(copy);
        assert_eq!(read(&other, target.address(), length + 1), [&given[..], &[7]].concat());
    }
}

/// `values` on the device by way of `feed`, kept behind those that `ranking` has: the product of one
/// value with 1 is the value. Nothing is waited for.
fn keep(ranking: &mut Ranking, feed: &mut Feed, values: &[f32]) {
    let spans = feed.spans(&[Part::Host(bytemuck::cast_slice(values))]).unwrap();
    ranking.add(spans[0]).unwrap();
}

/// As many different numbers.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|index| (index * 3 + seed * 1001) as f32 + 0.5).collect()
}

#[test]
fn inputs_are_not_overwritten_before_they_are_copied() {
    let _gpu = Gpu::new();
    let stream = Device::open(0).unwrap().stream().unwrap();
    let mut ranking = Ranking::new(&stream).unwrap();
    let mut feed = Feed::new(&stream).unwrap();
    ranking.compare_texts(&[1.0], 30_000).unwrap();
    let runs = [64, 64, 10, 64, 5000, 64, 20_000];
    for (seed, count) in runs.into_iter().enumerate() {
        keep(&mut ranking, &mut feed, &numbers(count, seed));
    }
    // Nor freed before.
    drop(feed);
    let runs = runs.into_iter().enumerate();
    let expected: Vec<f32> = runs.flat_map(|(seed, count)| numbers(count, seed)).collect();
    assert_eq!(ranking.similarities().unwrap(), expected);
}

#[test]
fn rows_are_copied() {
    let _gpu = Gpu::new();
    let stream = Device::open(0).unwrap().stream().unwrap();
    let given = bytes(4096, 3);
    for (rows, width, stride, from, to) in [
        (1, 100, 100, 0, 100),
        (1, 100, 100, 200, 0),
        (3, 10, 50, 0, 1000),
        (3, 50, 50, 1000, 0),
        // In between each other, and to the last byte.
        (4, 8, 32, 0, 8),
        (4, 8, 32, 24, 0),
        (2, 96, 1000, 3000, 2500),
        (3, 96, 1000, 0, 500),
        (0, 8, 32, 0, 1),
        (2, 0, 32, 0, 1),
        (1, 4096, 4096, 0, 0),
    ] {
        let mut buffer = there(&stream, &given);
        stream.copy_rows(&mut buffer, from, to, Pitch { rows, width, stride }).unwrap();
        let mut expected = given.clone();
        for row in 0..rows {
            let place = |start: usize| start + row * stride..start + row * stride + width;
            expected[place(to)].copy_from_slice(&given[place(from)]);
        }
        assert_eq!(read(&stream, buffer.address(), 4096), expected, "{rows} {width} {stride}");
    }
    let mut buffer = there(&stream, &given);
    for (rows, width, stride, from, to) in [
        (1, 96, 1000, 0, 4001),
        (3, 96, 1000, 2501, 0),
        (2, 33, 32, 0, 1000),
        (1, 1, 1, 0, usize::MAX),
        (usize::MAX, 2, 4, 0, 8),
        // Onto each other.
        (1, 100, 100, 0, 99),
        (3, 10, 50, 50, 100),
        (3, 10, 50, 0, 41),
        (3, 10, 50, 109, 0),
    ] {
        let pitch = Pitch { rows, width, stride };
        let error = stream.copy_rows(&mut buffer, from, to, pitch).unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "{pitch:?} {from} {to}");
    }
    assert_eq!(read(&stream, buffer.address(), 4096), given);
}

#[test]
fn any_thread_may_give_work() {
    let _gpu = Gpu::new();
    let device = Device::open(0).unwrap();
    // A context is a thread's own: each of these runs on a new one.
    fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| scope.spawn(work).join().unwrap())
    }
    let stream = apart(|| device.stream()).unwrap();
    let mut buffer = apart(|| stream.zeros(100)).unwrap();
    apart(|| stream.synchronize()).unwrap();
    let given = bytes(40, 1);
    // SAFETY: the buffer's memory, which nothing else uses.
    apart(|| unsafe { device.write(buffer.address(), &given) }).unwrap();
    let pitch = Pitch { rows: 2, width: 20, stride: 20 };
    apart(|| stream.copy_rows(&mut buffer, 0, 40, pitch)).unwrap();
    let graph = apart(|| stream.record(|| stream.copy_rows(&mut buffer, 40, 60, pitch)));
    assert!(graph.is_err(), "rows onto each other");
    let pitch = Pitch { rows: 1, width: 20, stride: 20 };
    let graph = apart(|| stream.record(|| stream.copy_rows(&mut buffer, 40, 80, pitch)));
    let mut graph = graph.unwrap().unwrap();
    // SAFETY: the buffer is where it was.
    apart(|| unsafe { graph.launch() }).unwrap();
    let found = apart(|| read(&stream, buffer.address(), 100));
    assert_eq!(found, [&given[..], &given, &given[..20]].concat());
    let mut into = [0; 10];
    // SAFETY: the buffer's memory; what writes it is done.
    apart(|| unsafe { device.read(buffer.address(), &mut into) }).unwrap();
    assert_eq!(into, given[..10]);
    let mut feed = apart(|| Feed::new(&stream)).unwrap();
    let loaded = apart(|| feed.load(&[Part::Host(&given)]).unwrap().next().unwrap());
    assert_eq!(read(&stream, loaded, 40), given);
    assert!(apart(|| device.memory()).unwrap().0 > 0);
    let halves: Vec<f16> = given.iter().map(|value| f16::from_f32(f32::from(*value))).collect();
    let table = Arc::new(apart(|| Table::upload(&stream, &[&halves], 1)).unwrap());
    let mut ranking = apart(|| Ranking::new(&stream)).unwrap();
    apart(|| ranking.compare(&table, &[0..40], &[1.0])).unwrap();
    let expected: Vec<f32> = given.iter().map(|value| f32::from(*value)).collect();
    assert_eq!(apart(|| ranking.similarities()).unwrap(), expected);
    let best = apart(|| ranking.best(0..40, Chunks { size: 64, keep: 1 }, false)).unwrap();
    assert_eq!(best.len(), 1);
    apart(move || drop((buffer, graph, feed, ranking, table)));
}

#[test]
fn a_table_lives_as_long_as_it_is_read() {
    let _gpu = Gpu::new();
    let device = Device::open(0).unwrap();
    let (here, other) = (device.stream().unwrap(), device.stream().unwrap());
    let mut ranking = Ranking::new(&here).unwrap();
    let values: Vec<f16> = (0..100_u8).map(|value| f16::from_f32(f32::from(value))).collect();
    let expected: Vec<f32> = values.iter().map(|value| value.to_f32()).collect();
    for _ in 0..2 {
        // In parts, of which one is empty, from another stream, which is not waited for.
        let parts = [&values[..33], &[], &values[33..]];
        let table = Arc::new(Table::upload(&other, &parts, 1).unwrap());
        ranking.compare(&table, &[0..100], &[1.0]).unwrap();
        drop(table);
        assert_eq!(ranking.similarities().unwrap(), expected);
        let table = Arc::new(Table::upload(&other, &parts, 1).unwrap());
        ranking.compare(&table, &[0..100], &[1.0]).unwrap();
        drop(table);
        ranking.compare_texts(&[1.0], 1).unwrap();
        // Were the table given back before it is read, it would be gone now.
        other.synchronize().unwrap();
        assert!(ranking.similarities().unwrap().is_empty());
    }
    let table = Arc::new(Table::upload(&other, &[&values], 1).unwrap());
    ranking.compare(&table, &[0..100], &[1.0]).unwrap();
    drop((ranking, table));
    other.synchronize().unwrap();
    if Device::count().unwrap() > 1 {
        let there = Device::open(1).unwrap().stream().unwrap();
        let table = Arc::new(Table::upload(&there, &[&values], 1).unwrap());
        let mut ranking = Ranking::new(&here).unwrap();
        assert!(ranking.compare(&table, &[0..100], &[1.0]).is_err(), "another GPU");
    }
}

#[test]
fn several_threads_work_at_once() {
    let _gpu = Gpu::new();
    let device = Device::open(0).unwrap();
    let values: Vec<f16> = (0..500_u16).map(|value| f16::from_f32(f32::from(value))).collect();
    let table = Table::upload(&device.stream().unwrap(), &[&values], 1).unwrap();
    let table = Arc::new(table);
    std::thread::scope(|scope| {
        for thread in 1..=4_u8 {
            let (device, table) = (&device, &table);
            scope.spawn(move || {
                let stream = device.stream().unwrap();
                let mut ranking = Ranking::new(&stream).unwrap();
                let mut feed = Feed::new(&stream).unwrap();
                let factor = f32::from(thread);
                for round in 0..10 {
                    ranking.compare(table, &[0..500], &[factor]).unwrap();
                    let expected: Vec<f32> = (0..500_u16).map(|v| f32::from(v) * factor).collect();
                    assert_eq!(ranking.similarities().unwrap(), expected);
                    let given = bytes(300, usize::from(thread) + round);
                    assert_eq!(load(&mut feed, &stream, &[&given]), [&given[..]]);
                }
            });
        }
    });
}
