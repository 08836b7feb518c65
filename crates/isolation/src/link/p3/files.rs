//! The async functions of files: each is one of the [`FileJobs`](crate::FileJobs), until its thread is free again.

use airssys_wasm_engine::{
    wasmtime::{
        self,
        component::{Accessor, LinkerInstance, Resource, ResourceType},
    },
    wasmtime_wasi::{
        filesystem::Descriptor,
        p2::{FsError, FsResult, bindings::filesystem::types::HostDescriptor as _},
        p3::bindings::filesystem::types::{Advice, DescriptorFlags, ErrorCode, NewTimestamp, OpenFlags, PathFlags},
    },
};

use super::super::close;
use crate::{
    HostState,
    wasi::p3::{self, Descriptors},
};

type File = Resource<Descriptor>;

/// Bytes of a path. Paths of calls that wait are held, and no system takes longer ones.
const LONGEST_PATH: usize = 4 << 10;

pub(super) fn bound<U: Send + 'static>(files: &mut LinkerInstance<'_, HostState<U>>) -> wasmtime::Result<()> {
    of_one(files)?;
    of_two(files)?;
    files.func_wrap_concurrent("[method]descriptor.open-at", |store, (file, flags, path, how, mode)| {
        Box::pin(open_at(store, file, flags, path, how, mode))
    })?;
    files.resource_async("descriptor", ResourceType::host::<Descriptor>(), |store, rep| Box::new(close(store, rep)))
}

fn of_one<U: Send + 'static>(files: &mut LinkerInstance<'_, HostState<U>>) -> wasmtime::Result<()> {
    files.func_wrap_concurrent(
        "[method]descriptor.advise",
        |store, (file, at, len, advice): (File, u64, u64, Advice)| {
            Box::pin(job(store, [file], 0, move |mut files, [file]| async move {
                files.view().advise(file, at, len, p3::advice(advice)).await
            }))
        },
    )?;
    files.func_wrap_concurrent("[method]descriptor.sync-data", |store, (file,): (File,)| {
        Box::pin(job(store, [file], 0, move |mut files, [file]| async move { files.view().sync_data(file).await }))
    })?;
    files.func_wrap_concurrent("[method]descriptor.get-flags", |store, (file,): (File,)| {
        Box::pin(job(store, [file], 0, move |mut files, [file]| async move {
            files.view().get_flags(file).await.map(p3::shown_flags)
        }))
    })?;
    files.func_wrap_concurrent("[method]descriptor.get-type", |store, (file,): (File,)| {
        Box::pin(job(store, [file], 0, move |mut files, [file]| async move {
            files.view().get_type(file).await.map(p3::kind)
        }))
    })?;
    files.func_wrap_concurrent("[method]descriptor.set-size", |store, (file, size): (File, u64)| {
        Box::pin(job(store, [file], 0, move |mut files, [file]| async move { files.view().set_size(file, size).await }))
    })?;
    files.func_wrap_concurrent(
        "[method]descriptor.set-times",
        |store, (file, read, written): (File, NewTimestamp, NewTimestamp)| {
            Box::pin(job(store, [file], 0, move |mut files, [file]| async move {
                files.view().set_times(file, p3::timestamp(read)?, p3::timestamp(written)?).await
            }))
        },
    )?;
    files.func_wrap_concurrent("[method]descriptor.sync", |store, (file,): (File,)| {
        Box::pin(job(store, [file], 0, move |mut files, [file]| async move { files.view().sync(file).await }))
    })?;
    files.func_wrap_concurrent("[method]descriptor.stat", |store, (file,): (File,)| {
        Box::pin(job(
            store,
            [file],
            0,
            move |mut files, [file]| async move { files.view().stat(file).await.map(p3::stat) },
        ))
    })?;
    files.func_wrap_concurrent("[method]descriptor.metadata-hash", |store, (file,): (File,)| {
        Box::pin(job(store, [file], 0, move |mut files, [file]| async move {
            files.view().metadata_hash(file).await.map(p3::hash)
        }))
    })?;
    files.func_wrap_concurrent("[method]descriptor.create-directory-at", |store, (file, path): (File, String)| {
        Box::pin(job(store, [file], path.len(), move |mut files, [file]| async move {
            files.view().create_directory_at(file, path).await
        }))
    })?;
    files.func_wrap_concurrent(
        "[method]descriptor.stat-at",
        |store, (file, flags, path): (File, PathFlags, String)| {
            Box::pin(job(store, [file], path.len(), move |mut files, [file]| async move {
                files.view().stat_at(file, p3::path_flags(flags), path).await.map(p3::stat)
            }))
        },
    )?;
    files.func_wrap_concurrent(
        "[method]descriptor.metadata-hash-at",
        |store, (file, flags, path): (File, PathFlags, String)| {
            Box::pin(job(store, [file], path.len(), move |mut files, [file]| async move {
                files.view().metadata_hash_at(file, p3::path_flags(flags), path).await.map(p3::hash)
            }))
        },
    )?;
    files.func_wrap_concurrent(
        "[method]descriptor.set-times-at",
        |store, (file, flags, path, read, written): (File, PathFlags, String, NewTimestamp, NewTimestamp)| {
            Box::pin(job(store, [file], path.len(), move |mut files, [file]| async move {
                files
                    .view()
                    .set_times_at(file, p3::path_flags(flags), path, p3::timestamp(read)?, p3::timestamp(written)?)
                    .await
            }))
        },
    )?;
    files.func_wrap_concurrent("[method]descriptor.readlink-at", |store, (file, path): (File, String)| {
        Box::pin(job(store, [file], path.len(), move |mut files, [file]| async move {
            files.view().readlink_at(file, path).await
        }))
    })?;
    files.func_wrap_concurrent("[method]descriptor.remove-directory-at", |store, (file, path): (File, String)| {
        Box::pin(job(store, [file], path.len(), move |mut files, [file]| async move {
            files.view().remove_directory_at(file, path).await
        }))
    })?;
    files.func_wrap_concurrent(
        "[method]descriptor.symlink-at",
        |store, (file, to, path): (File, String, String)| {
            Box::pin(job(store, [file], path.len().max(to.len()), move |mut files, [file]| async move {
                files.view().symlink_at(file, to, path).await
            }))
        },
    )?;
    files.func_wrap_concurrent("[method]descriptor.unlink-file-at", |store, (file, path): (File, String)| {
        Box::pin(job(store, [file], path.len(), move |mut files, [file]| async move {
            files.view().unlink_file_at(file, path).await
        }))
    })?;
    Ok(())
}

fn of_two<U: Send + 'static>(files: &mut LinkerInstance<'_, HostState<U>>) -> wasmtime::Result<()> {
    files.func_wrap_concurrent(
        "[method]descriptor.link-at",
        |store, (file, flags, path, to, new): (File, PathFlags, String, File, String)| {
            Box::pin(job(store, [file, to], path.len().max(new.len()), move |mut files, [file, to]| async move {
                files.view().link_at(file, p3::path_flags(flags), path, to, new).await
            }))
        },
    )?;
    files.func_wrap_concurrent(
        "[method]descriptor.rename-at",
        |store, (file, path, to, new): (File, String, File, String)| {
            Box::pin(job(store, [file, to], path.len().max(new.len()), move |mut files, [file, to]| async move {
                files.view().rename_at(file, path, to, new).await
            }))
        },
    )?;
    files.func_wrap_concurrent("[method]descriptor.is-same-object", |store, (file, other): (File, File)| {
        Box::pin(async move {
            let (same,) = job(store, [file, other], 0, |mut files, [file, other]| async move {
                files.view().is_same_object(file, other).await.map_err(FsError::trap)
            })
            .await?;
            Ok((same?,))
        })
    })
}

async fn open_at<U: Send + 'static>(
    store: &Accessor<HostState<U>>,
    file: File,
    flags: PathFlags,
    path: String,
    how: OpenFlags,
    mode: DescriptorFlags,
) -> wasmtime::Result<(Result<File, ErrorCode>,)> {
    let (opened,) = job(store, [file], path.len(), move |mut files, [file]| async move {
        let (how, mode) = (p3::open_flags(how), p3::descriptor_flags(mode));
        let opened = files.view().open_at(file, p3::path_flags(flags), path, how, mode).await?;
        Ok(files.take(opened)?)
    })
    .await?;
    match opened {
        Ok(opened) => store.with(|mut store| Ok((Ok(opened.push_to(store.get().table())?),))),
        Err(error) => Ok((Err(error),)),
    }
}

/// Runs a function of 0.2 apart from the sandbox, as a job that holds its permits until it ends: a call may be cancelled,
/// a thread that waits for a disk may not.
async fn job<U: Send + 'static, const N: usize, R: Send + 'static, W>(
    store: &Accessor<HostState<U>>,
    descriptors: [File; N],
    path: usize,
    work: impl FnOnce(Descriptors, [File; N]) -> W,
) -> wasmtime::Result<(Result<R, ErrorCode>,)>
where
    W: Future<Output = FsResult<R>> + Send + 'static,
{
    let (files, in_flight, jobs) = store.with(|mut store| {
        let state = store.get();
        let jobs = state.file_streams().jobs().clone();
        let files = Descriptors::of(state.table(), descriptors, &jobs)?;
        Ok::<_, wasmtime::Error>((files, state.in_flight(), jobs))
    })?;
    if path > LONGEST_PATH {
        return Ok((Err(ErrorCode::NameTooLong),));
    }
    let work = work(files.0, files.1);
    let in_flight = in_flight.file().await;
    let done = jobs.spawn(async move {
        let done = work.await;
        drop(in_flight);
        done
    });
    match done.await {
        Ok(value) => Ok((Ok(value),)),
        Err(error) => Ok((Err(p3::error(error.downcast()?)),)),
    }
}
