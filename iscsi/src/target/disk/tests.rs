use proptest::prelude::*;

use super::*;

fn read(disk: &mut dyn Disk, offset: u64, len: usize) -> Vec<u8> {
    let mut sink = ReadSink::new();
    disk.read(offset, len, &mut sink).unwrap();
    sink.take().to_bytes().to_vec()
}

const SIZE: u64 = 3 << 20;

fn disks(dir: &tempfile::TempDir) -> Vec<Box<dyn Disk>> {
    vec![
        Box::new(RamDisk::new(SIZE)),
        Box::new(FileDisk::open(&dir.path().join("disk"), SIZE).unwrap()),
        Box::new(WriteCache::new(RamDisk::new(SIZE), 512)),
    ]
}

#[test]
fn a_read_of_ram_is_few_slices() {
    let mut disk = RamDisk::new(SIZE);
    disk.write(0, &vec![7; 2 << 20]).unwrap();
    let mut sink = ReadSink::new();
    for _ in 0..100 {
        disk.read(4096, 4096, &mut sink).unwrap();
        assert_eq!(sink.take().segments().len(), 1);
    }
    disk.read(0, 1 << 20, &mut sink).unwrap();
    assert!(sink.take().segments().len() <= 16);
}

#[test]
fn what_was_read_from_ram_does_not_change_any_more() {
    let mut disk = RamDisk::new(SIZE);
    disk.write(0, &vec![1; 2 << 20]).unwrap();
    let mut sink = ReadSink::new();
    disk.read(1000, 1 << 20, &mut sink).unwrap();
    let held = sink.take();
    disk.write(5000, &[2; 300_000]).unwrap();
    disk.unmap(512 * 1024, 1 << 20).unwrap();
    disk.write(600_000, &[3; 1]).unwrap();
    assert!(held.to_bytes().iter().all(|byte| *byte == 1));

    let now = read(&mut disk, 0, 2 << 20);
    let expected: Vec<u8> = (0..2 << 20)
        .map(|at| match at {
            600_000 => 3,
            5000..305_000 => 2,
            524_288..1_572_864 => 0,
            _ => 1,
        })
        .collect();
    assert!(now == expected);
}

#[test]
fn ram_takes_memory_only_for_what_was_written() {
    let mut disk = RamDisk::new(1 << 50).with_space(4 << 20);
    disk.write(1 << 49, &[1; 1000]).unwrap();
    assert_eq!(disk.mapped_bytes(), 1024);
    assert!(!disk.extent(0).unwrap().mapped);
    assert_eq!(
        disk.extent(1 << 49),
        Ok(DiskExtent {
            len_bytes: 1024,
            mapped: true
        })
    );
    disk.unmap(0, 1 << 50).unwrap();
    assert_eq!(disk.mapped_bytes(), 0);
    assert!(read(&mut disk, 1 << 49, 1000).iter().all(|b| *b == 0));
}

#[test]
fn space_runs_out_where_it_was_said() {
    let mut disk = RamDisk::new(SIZE).with_space(2048);
    disk.write(0, &[1; 2048]).unwrap();
    assert_eq!(disk.write(4096, &[1; 512]), Err(DiskError::NoSpace));
    disk.write(0, &[2; 2048]).unwrap();
    disk.unmap(0, 512).unwrap();
    disk.write(4096, &[1; 512]).unwrap();
}

#[test]
fn ranges_outside_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    for mut disk in disks(&dir) {
        let mut sink = ReadSink::new();
        assert!(disk.read(SIZE - 1, 2, &mut sink).is_err());
        assert!(disk.write(u64::MAX, &[0; 2]).is_err());
        assert!(disk.unmap(1, u64::MAX).is_err());
        assert!(disk.extent(SIZE).is_err());
        assert!(disk.write(SIZE, &[]).is_ok());
    }
}

#[test]
fn shrinking_forgets_and_growing_gives_zeroes() {
    let dir = tempfile::tempdir().unwrap();
    for mut disk in disks(&dir) {
        disk.write(SIZE - 512, &[9; 512]).unwrap();
        disk.resize(1 << 20).unwrap();
        assert!(disk.write(1 << 20, &[1]).is_err());
        disk.resize(2 * SIZE).unwrap();
        assert!(read(&mut *disk, SIZE - 512, 512).iter().all(|b| *b == 0));
    }
}

#[test]
fn a_power_cut_loses_what_was_not_flushed_and_nothing_else() {
    let mut disk = WriteCache::new(RamDisk::new(SIZE), 512);
    disk.write(0, &[1; 1024]).unwrap();
    disk.flush(0, SIZE).unwrap();
    disk.write(0, &[2; 512]).unwrap();
    disk.write(4096, &[3; 512]).unwrap();
    disk.write(8192, &[4; 512]).unwrap();
    disk.flush(8192, 512).unwrap();
    disk.unmap(512, 512).unwrap();
    assert_eq!(disk.dirty_blocks(), 3);
    disk.power_cut(&mut |_| false).unwrap();
    assert_eq!(read(&mut disk, 0, 1024), [1; 1024]);
    assert_eq!(read(&mut disk, 4096, 512), [0; 512]);
    assert!(!disk.extent(4096).unwrap().mapped);
    assert_eq!(read(&mut disk, 8192, 512), [4; 512]);
    assert_eq!(disk.dirty_blocks(), 0);
    // Some blocks may survive.
    disk.write(0, &[5; 1024]).unwrap();
    disk.power_cut(&mut |offset| offset == 512).unwrap();
    assert_eq!(read(&mut disk, 0, 1024), [[1; 512], [5; 512]].concat());
}

#[derive(Debug, Clone)]
enum Step {
    Write(usize, Vec<u8>),
    Unmap(usize, usize),
    Flush,
    PowerCut,
}

fn any_step(size: usize) -> impl Strategy<Value = Step> {
    let blocks = size / 512;
    prop_oneof![
        4 => (0..blocks, 1usize..8, any::<u8>()).prop_map(move |(at, n, byte)| {
            Step::Write(at * 512, vec![byte; (n * 512).min(size - at * 512)])
        }),
        2 => (0..blocks, 1usize..64).prop_map(move |(at, n)| {
            Step::Unmap(at * 512, (n * 512).min(size - at * 512))
        }),
        1 => Just(Step::Flush),
        1 => Just(Step::PowerCut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Every disk agrees with a flat array, and the cache with the last flushed state after a cut.
    #[test]
    fn disks_agree_with_a_model(steps in proptest::collection::vec(any_step(SIZE as usize), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        for (i, mut disk) in disks(&dir).into_iter().enumerate() {
            let mut model = vec![0u8; SIZE as usize];
            let mut durable = model.clone();
            for step in &steps {
                match step {
                    Step::Write(at, data) => {
                        disk.write(*at as u64, data).unwrap();
                        model[*at..at + data.len()].copy_from_slice(data);
                        prop_assert!(disk.extent(*at as u64).unwrap().mapped);
                    }
                    Step::Unmap(at, len) => {
                        disk.unmap(*at as u64, *len as u64).unwrap();
                        model[*at..at + len].fill(0);
                    }
                    Step::Flush => {
                        disk.flush(0, SIZE).unwrap();
                        durable.clone_from(&model);
                    }
                    Step::PowerCut if i == 2 => {
                        disk.power_cut(&mut |_| false).unwrap();
                        model.clone_from(&durable);
                    }
                    Step::PowerCut => disk.power_cut(&mut |_| false).unwrap(),
                }
            }
            prop_assert!(read(&mut *disk, 0, SIZE as usize) == model, "disk {i}");
            let mut at = 0;
            while at < SIZE {
                let extent = disk.extent(at).unwrap();
                prop_assert!(extent.len_bytes > 0);
                if !extent.mapped {
                    let range = at as usize..(at + extent.len_bytes) as usize;
                    prop_assert!(model[range].iter().all(|byte| *byte == 0));
                }
                at += extent.len_bytes;
            }
            prop_assert_eq!(at, SIZE);
        }
    }
}
