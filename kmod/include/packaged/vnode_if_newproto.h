/* SPDX-License-Identifier: BSD-2-Clause */
/* Empty on purpose: see vnode_if.h beside it. */
