/* The kernels and the weights of @NAME@ as read-only data; see @NAME@.c. */
	.section .rodata
	.hidden @NAME@_cubin
	.globl @NAME@_cubin
	.balign 64
@NAME@_cubin:
@CUBIN@	.byte 0
	.hidden @NAME@_ptx
	.globl @NAME@_ptx
	.balign 64
@NAME@_ptx:
	.incbin "@NAME@.ptx"
	.byte 0
	.hidden @NAME@_weights
	.globl @NAME@_weights
	.balign 64
@NAME@_weights:
	.incbin "@NAME@.weights"
	.byte 0
	.section .note.GNU-stack, "", %progbits
