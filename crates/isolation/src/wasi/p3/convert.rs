//! Types of `wasi:filesystem` that 0.2 and 0.3 have each of their own.

use airssys_wasm_engine::wasmtime_wasi::{
    p2::bindings::{clocks::wall_clock::Datetime, filesystem::types as p2},
    p3::bindings::{clocks::system_clock::Instant, filesystem::types as p3},
};

pub(crate) fn error(error: p2::ErrorCode) -> p3::ErrorCode {
    use p2::ErrorCode as From;
    use p3::ErrorCode as To;
    match error {
        From::Access => To::Access,
        // 0.3 has no such error.
        From::WouldBlock => To::Other(None),
        From::Already => To::Already,
        From::BadDescriptor => To::BadDescriptor,
        From::Busy => To::Busy,
        From::Deadlock => To::Deadlock,
        From::Quota => To::Quota,
        From::Exist => To::Exist,
        From::FileTooLarge => To::FileTooLarge,
        From::IllegalByteSequence => To::IllegalByteSequence,
        From::InProgress => To::InProgress,
        From::Interrupted => To::Interrupted,
        From::Invalid => To::Invalid,
        From::Io => To::Io,
        From::IsDirectory => To::IsDirectory,
        From::Loop => To::Loop,
        From::TooManyLinks => To::TooManyLinks,
        From::MessageSize => To::MessageSize,
        From::NameTooLong => To::NameTooLong,
        From::NoDevice => To::NoDevice,
        From::NoEntry => To::NoEntry,
        From::NoLock => To::NoLock,
        From::InsufficientMemory => To::InsufficientMemory,
        From::InsufficientSpace => To::InsufficientSpace,
        From::NotDirectory => To::NotDirectory,
        From::NotEmpty => To::NotEmpty,
        From::NotRecoverable => To::NotRecoverable,
        From::Unsupported => To::Unsupported,
        From::NoTty => To::NoTty,
        From::NoSuchDevice => To::NoSuchDevice,
        From::Overflow => To::Overflow,
        From::NotPermitted => To::NotPermitted,
        From::Pipe => To::Pipe,
        From::ReadOnly => To::ReadOnly,
        From::InvalidSeek => To::InvalidSeek,
        From::TextFileBusy => To::TextFileBusy,
        From::CrossDevice => To::CrossDevice,
    }
}

pub(crate) fn kind(kind: p2::DescriptorType) -> p3::DescriptorType {
    use p2::DescriptorType as From;
    use p3::DescriptorType as To;
    match kind {
        From::Unknown => To::Other(None),
        From::BlockDevice => To::BlockDevice,
        From::CharacterDevice => To::CharacterDevice,
        From::Directory => To::Directory,
        From::Fifo => To::Fifo,
        From::SymbolicLink => To::SymbolicLink,
        From::RegularFile => To::RegularFile,
        From::Socket => To::Socket,
    }
}

/// A time before 1970 is none, as in 0.2.
pub(crate) fn stat(stat: p2::DescriptorStat) -> p3::DescriptorStat {
    let time = |time: Option<Datetime>| {
        let Datetime { seconds, nanoseconds } = time?;
        Some(Instant { seconds: seconds.try_into().ok()?, nanoseconds })
    };
    p3::DescriptorStat {
        type_: kind(stat.type_),
        link_count: stat.link_count,
        size: stat.size,
        data_access_timestamp: time(stat.data_access_timestamp),
        data_modification_timestamp: time(stat.data_modification_timestamp),
        status_change_timestamp: time(stat.status_change_timestamp),
    }
}

/// # Errors
///
/// `overflow` for a time before 1970.
pub(crate) fn timestamp(time: p3::NewTimestamp) -> Result<p2::NewTimestamp, p2::ErrorCode> {
    Ok(match time {
        p3::NewTimestamp::NoChange => p2::NewTimestamp::NoChange,
        p3::NewTimestamp::Now => p2::NewTimestamp::Now,
        p3::NewTimestamp::Timestamp(Instant { seconds, nanoseconds }) => {
            let seconds = seconds.try_into().map_err(|_| p2::ErrorCode::Overflow)?;
            p2::NewTimestamp::Timestamp(Datetime { seconds, nanoseconds })
        }
    })
}

pub(crate) fn hash(hash: p2::MetadataHashValue) -> p3::MetadataHashValue {
    p3::MetadataHashValue { lower: hash.lower, upper: hash.upper }
}

pub(crate) fn advice(advice: p3::Advice) -> p2::Advice {
    use p2::Advice as To;
    use p3::Advice as From;
    match advice {
        From::Normal => To::Normal,
        From::Sequential => To::Sequential,
        From::Random => To::Random,
        From::WillNeed => To::WillNeed,
        From::DontNeed => To::DontNeed,
        From::NoReuse => To::NoReuse,
    }
}

/// The flags on the right for those on the left.
macro_rules! flags {
    ($given:ident, $from:ty => $to:ty: $($flag:ident)*) => {{
        let mut flags = <$to>::empty();
        $(
            if $given.contains(<$from>::$flag) {
                flags |= <$to>::$flag;
            }
        )*
        flags
    }};
}

pub(crate) fn path_flags(given: p3::PathFlags) -> p2::PathFlags {
    flags!(given, p3::PathFlags => p2::PathFlags: SYMLINK_FOLLOW)
}

pub(crate) fn open_flags(given: p3::OpenFlags) -> p2::OpenFlags {
    flags!(given, p3::OpenFlags => p2::OpenFlags: CREATE DIRECTORY EXCLUSIVE TRUNCATE)
}

pub(crate) fn descriptor_flags(given: p3::DescriptorFlags) -> p2::DescriptorFlags {
    flags!(given, p3::DescriptorFlags => p2::DescriptorFlags:
        READ WRITE FILE_INTEGRITY_SYNC DATA_INTEGRITY_SYNC REQUESTED_WRITE_SYNC MUTATE_DIRECTORY)
}

pub(crate) fn shown_flags(given: p2::DescriptorFlags) -> p3::DescriptorFlags {
    flags!(given, p2::DescriptorFlags => p3::DescriptorFlags:
        READ WRITE FILE_INTEGRITY_SYNC DATA_INTEGRITY_SYNC REQUESTED_WRITE_SYNC MUTATE_DIRECTORY)
}
