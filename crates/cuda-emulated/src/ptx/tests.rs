use super::*;

/// Memory that begins at [`Self::START`].
struct Plain(Vec<u8>);

impl Plain {
    const START: u64 = 0x100_0000;

    fn place(&self, address: u64, length: usize) -> Result<std::ops::Range<usize>, String> {
        let start = address.wrapping_sub(Self::START) as usize;
        let end = start.checked_add(length).filter(|end| *end <= self.0.len());
        end.map(|end| start..end).ok_or_else(|| format!("nothing at {address:#x}"))
    }

    fn words(&self) -> Vec<u32> {
        self.0.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }
}

impl Global for Plain {
    fn read(&mut self, address: u64, into: &mut [u8]) -> Result<(), String> {
        into.copy_from_slice(&self.0[self.place(address, into.len())?]);
        Ok(())
    }

    fn write(&mut self, address: u64, from: &[u8]) -> Result<(), String> {
        let place = self.place(address, from.len())?;
        self.0[place].copy_from_slice(from);
        Ok(())
    }
}

/// A kernel of `body`, in which `%rd0` is the memory and `%r0` the thread.
fn kernel(body: &str) -> Result<Arc<Kernel>, String> {
    let text = format!(
        ".version 8.2\n.target sm_75\n.address_size 64\n.extern .shared .align 16 .b8 own[];\n\
         .visible .entry test(\n.param .u32 test_param_0,\n.param .u64 test_param_1\n)\n{{\n\
         .reg .pred %p<9>;\n.reg .b16 %rs<9>;\n.reg .f32 %f<9>;\n.reg .b32 %r<9>;\n\
         .reg .b64 %rd<9>;\nld.param.u64 %rd0, [test_param_1];\nmov.u32 %r0, %tid.x;\n\
         {body}\nret;\n}}"
    );
    Ok(parse(&text)?.kernels["test"].clone())
}

/// What `body` makes of a memory of zeros, as numbers of 32 bits.
fn run_body(body: &str, blocks: u32, threads: u32) -> Result<Vec<u32>, String> {
    let kernel = kernel(body)?;
    let mut memory = Plain(vec![0; 1024]);
    assert_eq!(
        (kernel.parameters.as_slice(), kernel.parameter_bytes()),
        (&[(0, 4), (8, 8)][..], 16)
    );
    let mut parameters = vec![0; 8];
    parameters.extend(Plain::START.to_le_bytes());
    let launch = Launch {
        kernel: &kernel,
        blocks,
        threads,
        shared: 256,
        parameters: &parameters,
        poison: 0xdb,
    };
    run(&launch, &mut memory).map(|()| memory.words())
}

/// What is in `%r1` after `body`.
fn value(body: &str) -> u32 {
    run_body(&format!("{body}\nst.global.u32 [%rd0], %r1;"), 1, 1).unwrap()[0]
}

/// What is in `%f1` after `body`.
fn float(body: &str) -> u32 {
    value(&format!("{body}\nmov.b32 %r1, %f1;"))
}

#[test]
fn numbers_are_computed() {
    for (body, expected) in [
        ("add.s32 %r1, 2147483647, 1;", 0x8000_0000),
        ("sub.s32 %r1, 1, 2;", u32::MAX),
        ("mul.lo.s32 %r1, 65537, 65537;", 131_073),
        ("mad.lo.s32 %r1, 3, 4, -13;", u32::MAX),
        ("div.u32 %r1, -1, 16;", 0x0fff_ffff),
        ("rem.u32 %r1, 23, 7;", 2),
        ("min.u32 %r1, -1, 7;", 7),
        ("and.b32 %r1, 12, 10;", 8),
        ("or.b32 %r1, 12, 10;", 14),
        ("not.b32 %r1, 0;", u32::MAX),
        ("shl.b32 %r1, 3, 31;", 0x8000_0000),
        ("shl.b32 %r1, 3, 32;", 0),
        ("shr.u32 %r1, -1, 28;", 15),
        ("mov.u32 %r2, 65539;\ncvt.u16.u32 %rs1, %r2;\nmov.u32 %r1, %rs1;", 3),
        ("mul.wide.u32 %rd1, -1, -1;\nmov.u32 %r1, %rd1;", 1),
        (
            "mul.wide.u32 %rd1, -1, -1;\nst.global.u64 [%rd0+8], %rd1;\nld.global.u32 %r1, [%rd0+12];",
            u32::MAX - 1,
        ),
        (
            "mov.u64 %rd1, -1;\nmov.u64 %rd2, 5;\nbfi.b64 %rd3, %rd2, %rd1, 32, 32;\nst.global.u64 [%rd0+8], %rd3;\nld.global.u32 %r1, [%rd0+12];",
            5,
        ),
        (
            "mov.u64 %rd1, 1;\nshl.b64 %rd1, %rd1, 33;\nxor.b64 %rd1, %rd1, 7;\nmov.u32 %r1, %rd1;",
            7,
        ),
        ("setp.gt.s32 %p1, -5, -1;\nselp.b32 %r1, 1, 2, %p1;", 2),
        ("setp.gt.s32 %p1, 5, -1;\nselp.b32 %r1, 1, 2, %p1;", 1),
        ("setp.lt.u32 %p1, 5, -1;\n@!%p1 bra $END;\nmov.u32 %r1, 9;\n$END:", 9),
        ("setp.lt.u64 %p1, -1, 5;\nmov.u32 %r1, 3;\n@%p1 mov.u32 %r1, 9;", 3),
        (
            "mov.u32 %r1, 0;\n$MORE:\nadd.s32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, 10;\n@%p1 bra $MORE;",
            10,
        ),
        (
            "mov.u32 %r2, 7;\nst.global.u32 [%rd0+4], %r2;\nred.global.min.u32 [%rd0+4], 5;\nred.global.min.u32 [%rd0+4], 6;\nld.global.u32 %r1, [%rd0+4];",
            5,
        ),
        ("st.global.v2.u32 [%rd0+8], {3, 4};\nld.global.nc.v4.u32 {%r3,%r4,%r1,%r2}, [%rd0];", 3),
    ] {
        assert_eq!(value(body), expected, "{body}");
    }
}

#[test]
fn floats_are_computed_to_the_bit() {
    for (body, expected) in [
        ("add.rn.f32 %f1, 0f3F800000, 0f33800000;", 0x3f80_0000),
        ("add.rn.f32 %f1, 0f3F800001, 0f33800000;", 0x3f80_0002),
        ("add.rn.f32 %f1, 0f80000000, 0f80000000;", 0x8000_0000),
        // Numbers too small to be normal count.
        ("mul.rn.f32 %f1, 0f00800000, 0f3F000000;", 0x0040_0000),
        // 1 + 2^-23 squared is 1 + 2^-22 + 2^-46: the last part is kept until the sum is rounded.
        ("fma.rn.f32 %f1, 0f3F800001, 0f3F800001, 0fBF800002;", 0x2880_0000),
        ("mul.rn.f32 %f1, 0f3F800001, 0f3F800001;\nadd.rn.f32 %f1, %f1, 0fBF800002;", 0),
        ("abs.f32 %f1, 0f80000000;", 0),
        ("add.rn.f32 %f1, 0f7F800000, 0fFF800000;", 0x7fff_ffff),
        ("mov.u32 %r2, 1;\ncvt.u16.u32 %rs1, %r2;\ncvt.f32.f16 %f1, %rs1;", 0x3380_0000),
        ("mov.u32 %r2, 64512;\ncvt.u16.u32 %rs1, %r2;\ncvt.f32.f16 %f1, %rs1;", 0xff80_0000),
    ] {
        assert_eq!(float(body), expected, "{body}");
    }
    assert_eq!(value("setp.lt.f32 %p1, 0f7FC00000, 0f7F800000;\nselp.b32 %r1, 1, 2, %p1;"), 2);
    assert_eq!(value("setp.lt.f32 %p1, 0f3F800000, 0f7F800000;\nselp.b32 %r1, 1, 2, %p1;"), 1);
}

/// Each thread writes `%r1` to its place.
const TELL: &str =
    "mul.wide.u32 %rd1, %r0, 4;\nadd.s64 %rd1, %rd0, %rd1;\nst.global.u32 [%rd1], %r1;";

#[test]
fn threads_exchange_values() {
    // Of 8 threads each, of which the last 2 have none behind them.
    let shuffle = "add.s32 %r2, %r0, 100;\nshfl.sync.down.b32 %r1|%p1, %r2, 2, 6175, -1;";
    let found = run_body(&format!("{shuffle}\n{TELL}"), 1, 64).unwrap();
    for thread in 0..64_u32 {
        let source = if thread % 8 < 6 { thread + 2 } else { thread };
        assert_eq!(found[thread as usize], source + 100);
    }
    let is_there = format!("{shuffle}\nselp.b32 %r1, 1, 0, %p1;\n{TELL}");
    let found = run_body(&is_there, 1, 32).unwrap();
    assert_eq!(found[..8], [1, 1, 1, 1, 1, 1, 0, 0]);
    // One is missing.
    let alone = "setp.eq.s32 %p1, %r0, 5;\n@%p1 ret;\nshfl.sync.down.b32 %r1, %r0, 2, 31, -1;";
    assert!(run_body(alone, 1, 32).unwrap_err().contains("thread 5 is missed"));
    assert!(run_body(shuffle, 1, 31).unwrap_err().contains("thread 31 is missed"));
}

/// Where a thread's number is in the block's memory, `%rd3`, and that of the next one, `%rd4`.
const OWN: &str = "mov.u64 %rd3, own;\nmul.wide.u32 %rd4, %r0, 4;\nadd.s64 %rd3, %rd3, %rd4;\n\
                   add.s32 %r3, %r0, 1;\nrem.u32 %r3, %r3, 64;\nmul.wide.u32 %rd4, %r3, 4;\n\
                   mov.u64 %rd5, own;\nadd.s64 %rd4, %rd5, %rd4;\n";

#[test]
fn a_barrier_is_waited_for() {
    let with = |barrier: &str| {
        format!("{OWN}st.shared.u32 [%rd3], %r0;\n{barrier}\nld.shared.u32 %r1, [%rd4];\n{TELL}")
    };
    let found = run_body(&with("bar.sync 0;"), 2, 64).unwrap();
    assert!((0..64).all(|thread| found[thread] as usize == (thread + 1) % 64));
    assert!(run_body(&with(""), 1, 64).unwrap_err().contains("no barrier between"));
    // A second block begins with garbage.
    let fresh = format!(
        "{OWN}mov.u32 %r5, %ctaid.x;\nsetp.eq.s32 %p1, %r5, 0;\n@%p1 st.shared.u32 [%rd3], %r0;\n\
         ld.shared.u32 %r1, [%rd3];\n{TELL}"
    );
    assert_eq!(run_body(&fresh, 2, 4).unwrap()[..4], [0xdbdb_dbdb; 4]);
    let overwritten = format!("{OWN}ld.shared.u32 %r1, [%rd3];\nst.shared.u32 [%rd4], %r1;");
    assert!(run_body(&overwritten, 1, 64).unwrap_err().contains("no barrier between"));
    let some = "setp.eq.s32 %p1, %r0, 0;\n@%p1 ret;\nbar.sync 0;";
    assert!(run_body(some, 1, 64).unwrap_err().contains("63 of 64 threads"));
}

#[test]
fn what_a_kernel_may_not_do_is_said() {
    for (body, words) in [
        ("ld.global.u32 %r1, [%rd0+1024];", "nothing at"),
        ("st.global.u32 [%rd0+-4], %r1;", "nothing at"),
        ("ld.global.u64 %rd1, [%rd0+4];", "no multiple"),
        ("mov.u64 %rd1, own;\nld.shared.u32 %r1, [%rd1+256];", "from byte 256 on of 256 shared"),
        ("ld.shared.u32 %r1, [%rd0];", "shared"),
        ("div.u32 %r1, 1, 0;", "a division by zero"),
        ("$MORE:\nbra $MORE;", "more than"),
    ] {
        let error = run_body(body, 1, 1).unwrap_err();
        assert!(error.contains(words), "{body}: {error}");
        assert!(error.starts_with("kernel test, block 0: thread 0"), "{error}");
    }
    for (body, words) in [
        ("sqrt.rn.f32 %f1, %f2;", "sqrt.rn.f32 %f1, %f2: an unknown instruction"),
        ("add.f32 %f1, %f2, %f3;", "an unknown instruction"),
        ("shfl.sync.up.b32 %r1, %r2, 1, 0, -1;", "an unknown instruction"),
        ("bar.sync 1;", "an unknown instruction"),
        ("bfi.b64 %rd1, %rd2, %rd3, 16, 32;", "not the upper half"),
        ("ld.local.u32 %r1, [%rd0];", "an unknown kind of memory"),
        ("mov.u32 %r9, 0;", "no register %r9"),
        ("mov.u32 %r1, %clock;", "no register %clock"),
        ("mov.u32 %r1, SHARE;", "what is SHARE?"),
        ("add.s32 %r1, %r2;", "1 operands, not 2"),
        ("bra $NOWHERE;", "no label $NOWHERE"),
    ] {
        let error = kernel(body).unwrap_err();
        assert!(error.contains(words), "{body}: {error}");
        assert!(error.starts_with("test: "), "{error}");
    }
    for (text, words) in [
        (".version 9.0\n", "version 9.0"),
        (".version 8.2\n.target sm_90\n", "this card is sm_75"),
        (".const .u32 x = 1;", "an unknown directive: .const"),
        (".visible .entry k()\n{\nret;", "its end is missing"),
    ] {
        assert!(parse(text).unwrap_err().contains(words), "{text}");
    }
}
