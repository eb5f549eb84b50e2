/* @NAME@: a model compiled by tilewright for NVIDIA GPUs (@TARGET@).
 *
 * Build @NAME@.c and @NAME@_data.S with any C11 compiler for Linux and link with -ldl: nothing of CUDA is
 * needed but, when a model is created, the driver (libcuda.so.1). Functions that return int32_t return 0 on
 * success; the reason of a failure is then in @NAME@_error(). A model may be used from any thread, but only
 * from one at a time; several models may run at once.
 */
#ifndef TILEWRIGHT_MODEL_@UPPER@_H
#define TILEWRIGHT_MODEL_@UPPER@_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

@TENSORS@
typedef struct @NAME@_model @NAME@_model;

/* Loads the kernels on a device (numbered from 0), reserves memory there, uploads the weights and captures
 * a run in a CUDA graph. *model is NULL after a failure. */
int32_t @NAME@_create(@NAME@_model **model, int32_t device);

/* Runs the model and waits. inputs and outputs are arrays of pointers to dense row-major tensors in the
 * order above, in the host's memory or in the device's. */
int32_t @NAME@_run(@NAME@_model *model, const void *const *inputs, void *const *outputs);

/* Starts a run on `stream` (a CUstream or cudaStream_t) and returns at once. It reads the model's own input
 * tensors and writes its own output tensors, whose addresses on the device (a CUdeviceptr) the functions
 * below return, 0 for a tensor that does not exist. Runs of one model must not overlap. */
int32_t @NAME@_launch(@NAME@_model *model, void *stream);
uint64_t @NAME@_input(const @NAME@_model *model, int32_t number);
uint64_t @NAME@_output(const @NAME@_model *model, int32_t number);

/* Frees all that the model holds; NULL is allowed. */
void @NAME@_destroy(@NAME@_model *model);

/* Why the last failed function of this thread failed. */
const char *@NAME@_error(void);

#ifdef __cplusplus
}
#endif

#endif
