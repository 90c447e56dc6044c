/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Disk devices: references, bios, pages that are held and mapped for them.
 */
#include "probe.h"

#include <sys/bio.h>
#include <sys/buf.h>
#include <sys/capsicum.h>
#include <sys/conf.h>
#include <sys/file.h>
#include <sys/vnode.h>

#include <geom/geom.h>

#include <vm/vm.h>
#include <vm/vm_param.h>
#include <vm/pmap.h>
#include <vm/vm_extern.h>
#include <vm/vm_map.h>
#include <vm/vm_page.h>

static int ended;

static void
done(struct bio *bp)
{
	mtx_lock(&probe_lock);
	ended = 1;
	bp->bio_caller2 = bp->bio_caller1;
	wakeup(&ended);
	mtx_unlock(&probe_lock);
}

/*
 * One transfer to or from the user's memory at a page's offset, mapped or not.  Says how it ended.
 */
static void
transfer(const char *what, struct cdev *dev, struct cdevsw *csw, int cmd, off_t offset, char *memory,
    int length, bool mapped)
{
	vm_map_t map = &curproc->p_vmspace->vm_map;
	vm_page_t pages[8];
	vm_offset_t at = 0;
	struct bio *bp;
	int count, in_page = (vm_offset_t)memory & PAGE_MASK;

	count = vm_fault_quick_hold_pages(map, (vm_offset_t)memory, length, VM_PROT_READ | VM_PROT_WRITE, pages,
	    nitems(pages));
	bp = g_alloc_bio();
	bp->bio_cmd = cmd;
	bp->bio_dev = dev;
	bp->bio_offset = offset;
	bp->bio_length = length;
	bp->bio_bcount = length;
	bp->bio_done = done;
	bp->bio_caller1 = &ended;
	if (mapped) {
		at = kva_alloc(ptoa(count));
		pmap_qenter(at, pages, count);
		bp->bio_data = (char *)at + in_page;
	} else {
		bp->bio_ma = pages;
		bp->bio_ma_n = count;
		bp->bio_ma_offset = in_page;
		bp->bio_data = unmapped_buf;
		bp->bio_flags |= BIO_UNMAPPED;
	}
	ended = 0;
	csw->d_strategy(bp);
	mtx_lock(&probe_lock);
	while (!ended)
		msleep(&ended, &probe_lock, 0, "probe", 0);
	mtx_unlock(&probe_lock);
	if (bp->bio_caller2 != &ended)
		FACT("a bio", "%s: what is its caller's was lost", what);
	FACT("a bio", "%s: error %d, flags %x, %d bytes left, %d moved", what, bp->bio_error,
	    bp->bio_flags & (BIO_ERROR | BIO_DONE), (int)bp->bio_resid, (int)bp->bio_completed);
	g_destroy_bio(bp);
	if (mapped) {
		pmap_qremove(at, count);
		kva_free(at, ptoa(count));
	}
	vm_page_unhold_pages(pages, count);
}

static void
held_pages(void)
{
	vm_map_t map = &curproc->p_vmspace->vm_map;
	vm_page_t first[2], again[2];
	int count;

	count = vm_fault_quick_hold_pages(map, (vm_offset_t)BUFFER, 2 * PAGE_SIZE, VM_PROT_READ, first, 2);
	FACT("vm_fault_quick_hold_pages of two pages", "%d, the same %d", count, first[0] == first[1]);
	count = vm_fault_quick_hold_pages(map, (vm_offset_t)BUFFER + PAGE_SIZE, 8, VM_PROT_READ, again, 2);
	FACT("vm_fault_quick_hold_pages of a page that is held", "%d, the same %d", count, first[1] == again[0]);
	vm_page_unhold_pages(again, 1);
	vm_page_unhold_pages(first, 2);
	count = vm_fault_quick_hold_pages(map, (vm_offset_t)UNTOUCHED, 8, VM_PROT_READ | VM_PROT_WRITE, first, 2);
	FACT("vm_fault_quick_hold_pages of a page that nobody has touched", "%d", count);
	if (count > 0)
		vm_page_unhold_pages(first, count);
	FACT("vm_fault_quick_hold_pages of what allows nothing", "%d",
	    vm_fault_quick_hold_pages(map, (vm_offset_t)FORBIDDEN, 8, VM_PROT_READ, first, 2));
	FACT("vm_fault_quick_hold_pages over the end of all", "%d",
	    vm_fault_quick_hold_pages(map, (vm_offset_t)-8, 16, VM_PROT_READ, first, 2));
}

void
probe_disks(void)
{
	struct bio *bp;
	struct cdev *dev = NULL, *again = NULL;
	struct cdevsw *csw;
	struct file *fp, *plain;
	struct vnode *vp;
	vm_offset_t at, other;
	u_long before;
	int i, ref = 5, dirty = 0;

	FACT("maxphys", "%lx", maxphys);
	FACT("unmapped_buf", "null %d, allowed %d", unmapped_buf == NULL, unmapped_buf_allowed);
	at = kva_alloc(2 * PAGE_SIZE);
	other = kva_alloc(PAGE_SIZE);
	FACT("kva_alloc", "null %d, in its page %d, apart %d", at == 0, (int)(at & PAGE_MASK),
	    other >= at + 2 * PAGE_SIZE || other + PAGE_SIZE <= at);
	kva_free(other, PAGE_SIZE);
	kva_free(at, 2 * PAGE_SIZE);
	held_pages();
	bp = g_alloc_bio();
	for (i = 0; i < sizeof(*bp); i++)
		dirty += ((char *)bp)[i] != 0;
	g_destroy_bio(bp);
	FACT("g_alloc_bio", "%d bytes not zero", dirty);

	if (fget(curthread, FD_DISK, &cap_no_rights, &fp) != 0 ||
	    fget(curthread, FD_READ, &cap_no_rights, &plain) != 0) {
		FACT("disks", "there are none");
		return;
	}
	FACT("devvn_refthread of a file", "null %d", devvn_refthread(plain->f_vnode, &dev, &ref) == NULL);
	fdrop(plain, curthread);
	vp = fp->f_vnode;
	FACT("a disk's vnode", "a file's type %d, is a disk %d, blocks of %ld", fp->f_type == DTYPE_VNODE,
	    vn_isdisk(vp), (long)vp->v_bufobj.bo_bsize);
	csw = devvn_refthread(vp, &dev, &ref);
	if (csw == NULL)
		panic("aio_rs_probe: the disk is none");
	FACT("devvn_refthread", "counted %d, a disk %d, takes %x bytes, not mapped %d", ref,
	    (csw->d_flags & D_DISK) != 0, dev->si_iosize_max, (dev->si_flags & SI_UNMAPPED) != 0);
	before = dev->si_threadcount;
	FACT("devvn_refthread again", "the same %d", devvn_refthread(vp, &again, &ref) == csw && again == dev);
	FACT("its count", "%ld more", (long)(dev->si_threadcount - before));
	dev_relthread(dev, 0);
	FACT("dev_relthread of what was not counted", "%ld more", (long)(dev->si_threadcount - before));
	dev_relthread(dev, ref);
	FACT("dev_relthread", "%ld more", (long)(dev->si_threadcount - before));

	suword(BUFFER + 512, 0x1122334455667788);
	transfer("a write", dev, csw, BIO_WRITE, 0, BUFFER, 8192, true);
	transfer("a read, not mapped, within its page", dev, csw, BIO_READ, 0, BUFFER + 8192 + 512, 2048, false);
	FACT("what was read", "%lx", fuword(BUFFER + 8192 + 512 + 512));
	transfer("a read, mapped, within its page", dev, csw, BIO_READ, 512, BUFFER + 16384 + 1024, 8192, true);
	FACT("what was read", "%lx", fuword(BUFFER + 16384 + 1024));
	transfer("a read over the end", dev, csw, BIO_READ, DISK_BYTES - 4096, BUFFER, 8192, true);
	transfer("a write over the end, not mapped", dev, csw, BIO_WRITE, DISK_BYTES - 4096, BUFFER, 8192, false);
	transfer("a read at the end", dev, csw, BIO_READ, DISK_BYTES, BUFFER, 4096, true);
	transfer("a read behind the end", dev, csw, BIO_READ, DISK_BYTES + SECTOR, BUFFER, 4096, true);
	transfer("a read before the beginning", dev, csw, BIO_READ, -SECTOR, BUFFER, 4096, true);
	transfer("a read between sectors", dev, csw, BIO_READ, 100, BUFFER, 4096, true);
	transfer("a read between sectors, before the beginning", dev, csw, BIO_READ, -100, BUFFER, 4096, true);
	transfer("a write of a part of a sector", dev, csw, BIO_WRITE, 0, BUFFER, 4096 + 100, true);
	dev_relthread(dev, 1);
	fdrop(fp, curthread);
}

/* The program has taken the disk away. */
void
probe_disks_gone(void)
{
	struct cdev *dev = NULL;
	struct file *fp;
	int error, ref = 5;

	error = fget(curthread, FD_DISK, &cap_no_rights, &fp);
	FACT("fget of a disk that is gone", "%d", error);
	if (error != 0)
		return;
	FACT("vn_isdisk of it", "%d", vn_isdisk(fp->f_vnode));
	FACT("devvn_refthread of it", "null %d", devvn_refthread(fp->f_vnode, &dev, &ref) == NULL);
	fdrop(fp, curthread);
}
