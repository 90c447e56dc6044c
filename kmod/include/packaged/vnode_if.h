/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Stands in for the generated vnode operation headers, which packaged header sets lack.
 * Nothing here is called yet: what a later change needs of the vnode operations is declared
 * here and checked against the generated file in a SYSDIR build.
 */
#ifndef AIO_RS_VNODE_IF_H
#define	AIO_RS_VNODE_IF_H
struct vop_generic_args;
#endif
