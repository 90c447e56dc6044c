// SPDX-License-Identifier: BSD-2-Clause
//! A number of requests with their buffers, and the ways to wait for them.

use crate::Failure;
use guest::aio::{self, Aiocb, Cb, SIGEV_KEVENT, Sigevent};
use guest::errno::EINTR;
use guest::mem::Region;
use guest::sys;

/// Bytes from one control block to the next: whole cache lines.
const STRIDE: usize = 192;

/// Names the call that failed.
pub fn at<E>(call: &'static str) -> impl Fn(E) -> (&'static str, E) {
    move |error| (call, error)
}

/// Requests of one size on one descriptor, at offsets that go round a span of bytes.
#[derive(Clone, Copy)]
pub struct Requests {
    /// How many.
    pub count: usize,
    fd: i32,
    size: usize,
    blocks: Region,
    buffers: Region,
    /// The addresses of the blocks, for lio_listio and aio_suspend.
    list: Region,
}

impl Requests {
    /// Makes requests that read, without notification.
    pub fn new(fd: i32, count: usize, size: usize, span: usize) -> Result<Self, Failure> {
        let map = |len: usize| Region::map(len).map_err(at("mmap"));
        let requests = Self {
            count,
            fd,
            size,
            blocks: map(count * STRIDE)?,
            buffers: map(count * size)?,
            list: map(count * 8)?,
        };
        // Memory is faulted in here, not while it is measured.
        requests.buffers.fill(0x5a);
        for index in 0..count {
            let offset = (index * size) % span.max(size);
            requests.set(index, aio::request(fd, offset as i64, requests.buffer(index), size));
            requests.list.set_word(index * 8, requests.addr(index) as u64);
        }
        Ok(requests)
    }

    fn cb(&self, index: usize) -> Cb {
        Cb::at(&self.blocks, index * STRIDE)
    }

    fn set(&self, index: usize, block: Aiocb) {
        self.cb(index).set(block);
    }

    /// The address of a block.
    pub fn addr(&self, index: usize) -> usize {
        self.blocks.at(index * STRIDE)
    }

    /// The address of a buffer.
    pub fn buffer(&self, index: usize) -> usize {
        self.buffers.at(index * self.size)
    }

    /// The address of the list of blocks.
    pub fn list(&self) -> usize {
        self.list.addr()
    }

    /// Puts a request at an offset.
    pub fn move_to(&self, index: usize, offset: i64) {
        self.set(index, aio::request(self.fd, offset, self.buffer(index), self.size));
    }

    /// Makes them all ready for lio_listio.
    pub fn opcode(&self, opcode: i32) {
        for index in 0..self.count {
            let mut block = self.cb(index).get();
            block.opcode = opcode;
            self.set(index, block);
        }
    }

    /// Has them all tell a kqueue.
    pub fn notify(&self, kq: i32) {
        for index in 0..self.count {
            let mut block = self.cb(index).get();
            block.sigevent = Sigevent { notify: SIGEV_KEVENT, signo: kq, ..Sigevent::default() };
            self.set(index, block);
        }
    }

    /// Starts one read.
    pub fn read(&self, index: usize) -> Result<(), Failure> {
        aio::read(self.addr(index)).map_err(at("aio_read"))
    }

    /// Waits for one and takes its result.
    pub fn suspend_and_return(&self, index: usize) -> Result<(), Failure> {
        suspend(&[self.addr(index)])?;
        self.return_(index)
    }

    /// Takes a result.
    pub fn return_(&self, index: usize) -> Result<(), Failure> {
        self.whole(aio::return_(self.addr(index)).map_err(at("aio_return"))?)
    }

    /// Takes the results of so many, whichever come.
    pub fn collect(&self, count: usize) -> Result<(), Failure> {
        for _ in 0..count {
            let result = loop {
                let done = aio::waitcomplete(None);
                if done.result != Err(EINTR) || done.cb != 0 {
                    break done.result;
                }
            };
            self.whole(result.map_err(at("aio_waitcomplete"))?)?;
        }
        Ok(())
    }

    fn whole(&self, bytes: i64) -> Result<(), Failure> {
        if bytes == self.size as i64 {
            return Ok(());
        }
        Err(("short", guest::errno::EIO))
    }

    /// Waits until all have finished, without taking a result: by a sync, which follows them.
    pub fn all_done(&self) -> Result<(), Failure> {
        let block = Region::map(STRIDE).map_err(at("mmap"))?;
        let sync = Cb::at(&block, 0);
        sync.set(aio::request(self.fd, 0, 0, 0));
        aio::fsync(sys::O_SYNC, sync.addr()).map_err(at("aio_fsync"))?;
        suspend(&[sync.addr()])?;
        aio::return_(sync.addr()).map_err(at("aio_return"))?;
        block.unmap().map_err(at("munmap"))
    }

    /// Gives the memory back.
    pub fn unmap(self) {
        for region in [self.blocks, self.buffers, self.list] {
            let _ = region.unmap();
        }
    }
}

/// Waits until one of the requests at these addresses has finished.
pub fn suspend(list: &[usize]) -> Result<(), Failure> {
    loop {
        match aio::suspend(list, None) {
            Err(EINTR) => {}
            other => return other.map_err(at("aio_suspend")),
        }
    }
}

/// Waits for one event at least, and takes the results of up to 64 requests that events tell of. A
/// request's event stays until its result is taken.
pub fn return_by_events(kq: i32, wanted: usize) -> Result<usize, Failure> {
    let mut found = [guest::kqueue::Kevent::default(); 64];
    let wanted = wanted.min(found.len());
    let count = loop {
        match guest::kqueue::kevent(kq, &[], &mut found[..wanted], None) {
            Err(EINTR) => {}
            other => break other.map_err(at("kevent"))?,
        }
    };
    for event in &found[..count] {
        aio::return_(event.ident).map_err(at("aio_return"))?;
    }
    Ok(count)
}
