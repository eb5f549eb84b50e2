/* Runs a compiled model on an NVIDIA GPU through the CUDA driver API, which is loaded at run time: nothing
 * of CUDA is needed to compile or link this file.
 *
 * In: the tables of NAME_kernels.h (kernels, launches, sizes), machine code or PTX, weights. Out: the
 * functions of NAME.h. Weights are uploaded once; all launches are recorded into one CUDA graph.
 * MODEL(x) is NAME_x, defined by NAME_kernels.h.
 */
#include "tilewright_cuda.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The driver's own types and values (CUDA Driver API, cuda.h). */
typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st* CUcontext;
typedef struct CUmod_st* CUmodule;
typedef struct CUfunc_st* CUfunction;
typedef struct CUstream_st* CUstream;
typedef struct CUgraph_st* CUgraph;
typedef struct CUgraphExec_st* CUgraphExec;
enum { STREAM_NON_BLOCKING = 1, CAPTURE_THREAD_LOCAL = 1, CC_MAJOR = 75, CC_MINOR = 76 };

#define DRIVER(F)                                                                                 \
    F(cuInit, (unsigned))                                                                         \
    F(cuDeviceGetCount, (int*))                                                                   \
    F(cuDeviceGet, (CUdevice*, int))                                                              \
    F(cuDeviceGetAttribute, (int*, int, CUdevice))                                                \
    F(cuDevicePrimaryCtxRetain, (CUcontext*, CUdevice))                                           \
    F(cuDevicePrimaryCtxRelease_v2, (CUdevice))                                                   \
    F(cuCtxPushCurrent_v2, (CUcontext))                                                           \
    F(cuCtxPopCurrent_v2, (CUcontext*))                                                           \
    F(cuModuleLoadData, (CUmodule*, const void*))                                                 \
    F(cuModuleUnload, (CUmodule))                                                                 \
    F(cuModuleGetFunction, (CUfunction*, CUmodule, const char*))                                  \
    F(cuMemAlloc_v2, (CUdeviceptr*, size_t))                                                      \
    F(cuMemFree_v2, (CUdeviceptr))                                                                \
    F(cuMemcpyHtoDAsync_v2, (CUdeviceptr, const void*, size_t, CUstream))                         \
    F(cuMemcpyDtoHAsync_v2, (void*, CUdeviceptr, size_t, CUstream))                               \
    F(cuMemcpyDtoDAsync_v2, (CUdeviceptr, CUdeviceptr, size_t, CUstream))                         \
    F(cuStreamCreate, (CUstream*, unsigned))                                                      \
    F(cuStreamDestroy_v2, (CUstream))                                                             \
    F(cuStreamSynchronize, (CUstream))                                                            \
    F(cuStreamBeginCapture_v2, (CUstream, int))                                                   \
    F(cuStreamEndCapture, (CUstream, CUgraph*))                                                   \
    F(cuGraphInstantiateWithFlags, (CUgraphExec*, CUgraph, unsigned long long))                   \
    F(cuGraphLaunch, (CUgraphExec, CUstream))                                                     \
    F(cuGraphDestroy, (CUgraph))                                                                  \
    F(cuGraphExecDestroy, (CUgraphExec))                                                          \
    F(cuGetErrorString, (CUresult, const char**))                                                 \
    F(cuLaunchKernel, (CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,    \
                       unsigned, CUstream, void**, void**))

struct driver {
    void* library;
#define FIELD(name, arguments) CUresult(*name) arguments;
    DRIVER(FIELD)
#undef FIELD
};

struct model {
    struct driver cu;
    CUdevice device;
    CUcontext context;
    CUmodule module;
    CUstream stream;
    CUgraphExec graph;
    CUfunction functions[KERNEL_COUNT];
    CUdeviceptr weights, arena, inputs[INPUT_COUNT + 1], outputs[OUTPUT_COUNT + 1];
};

static _Thread_local char message[256] = "no error";

const char* MODEL(message)(void) { return message; }

static int32_t fail(const char* what, const char* why) {
    snprintf(message, sizeof message, "%s: %s", what, why);
    return 1;
}

/* A driver call; on failure its name and the driver's words become the message. */
#define TRY(call)                                                                                 \
    do {                                                                                          \
        CUresult code_ = m->cu.call;                                                              \
        if (code_ != 0) {                                                                         \
            return refused(m, #call, code_);                                                      \
        }                                                                                         \
    } while (0)

static int32_t refused(const struct model* m, const char* call, CUresult code) {
    const char* why = NULL;
    char name[64];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(call, "("), call);
    m->cu.cuGetErrorString(code, &why);
    return fail(name, why != NULL ? why : "unknown error");
}

static int32_t load_driver(struct driver* cu) {
    cu->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (cu->library == NULL) {
        return fail("no CUDA driver (libcuda.so.1) found", "this machine has no NVIDIA GPU set up");
    }
#define LOOK_UP(name, arguments)                                                                  \
    *(void**)&cu->name = dlsym(cu->library, #name);                                               \
    if (cu->name == NULL) {                                                                       \
        return fail("the CUDA driver is too old, it lacks", #name);                               \
    }
    DRIVER(LOOK_UP)
#undef LOOK_UP
    return 0;
}

static CUdeviceptr place(const struct model* m, const struct argument* a) {
    switch (a->base) {
        case BASE_INPUT: return m->inputs[a->number] + a->offset;
        case BASE_OUTPUT: return m->outputs[a->number] + a->offset;
        case BASE_ARENA: return m->arena + a->offset;
        default: return m->weights + a->offset;
    }
}

static int32_t launch_all(struct model* m) {
    for (unsigned i = 0; i < LAUNCH_COUNT; i++) {
        const struct launch* l = &launches[i];
        CUdeviceptr values[MAX_ARGUMENTS];
        void* pointers[MAX_ARGUMENTS];
        for (unsigned k = 0; k < l->count; k++) {
            values[k] = place(m, &l->arguments[k]);
            pointers[k] = &values[k];
        }
        const struct kernel* f = &kernels[l->kernel];
        TRY(cuLaunchKernel(m->functions[l->kernel], f->blocks, 1, 1, f->threads, 1, 1, 0, m->stream,
                           pointers, NULL));
    }
    return 0;
}

/* Records the launches; a driver that cannot leaves m->graph empty, and they are launched one by one. */
static void record(struct model* m) {
    CUgraph graph = NULL;
    if (m->cu.cuStreamBeginCapture_v2(m->stream, CAPTURE_THREAD_LOCAL) != 0) {
        return;
    }
    int32_t failed = launch_all(m);
    if (m->cu.cuStreamEndCapture(m->stream, &graph) != 0 || graph == NULL) {
        return;
    }
    if (!failed && m->cu.cuGraphInstantiateWithFlags(&m->graph, graph, 0) != 0) {
        m->graph = NULL;
    }
    m->cu.cuGraphDestroy(graph);
}

static int32_t allocate(struct model* m, CUdeviceptr* where, size_t bytes) {
    TRY(cuMemAlloc_v2(where, bytes > 0 ? bytes : 1));
    return 0;
}

static int32_t prepare(struct model* m) {
    int major = 0, minor = 0;
    TRY(cuDeviceGetAttribute(&major, CC_MAJOR, m->device));
    TRY(cuDeviceGetAttribute(&minor, CC_MINOR, m->device));
    if (10 * major + minor < COMPUTE_CAPABILITY) {
        char text[64];
        snprintf(text, sizeof text, "%d.%d, the model needs %d.%d", major, minor,
                 COMPUTE_CAPABILITY / 10, COMPUTE_CAPABILITY % 10);
        return fail("this GPU has compute capability", text);
    }
    TRY(cuModuleLoadData(&m->module, MODEL(image)));
    for (unsigned i = 0; i < KERNEL_COUNT; i++) {
        TRY(cuModuleGetFunction(&m->functions[i], m->module, kernels[i].name));
    }
    TRY(cuStreamCreate(&m->stream, STREAM_NON_BLOCKING));
    int32_t code = allocate(m, &m->weights, WEIGHTS_BYTES);
    code = code ? code : allocate(m, &m->arena, ARENA_BYTES);
    for (unsigned i = 0; i < INPUT_COUNT && !code; i++) {
        code = allocate(m, &m->inputs[i], input_bytes[i]);
    }
    for (unsigned i = 0; i < OUTPUT_COUNT && !code; i++) {
        code = allocate(m, &m->outputs[i], output_bytes[i]);
    }
    if (code) {
        return code;
    }
    if (WEIGHTS_BYTES > 0) {
        TRY(cuMemcpyHtoDAsync_v2(m->weights, MODEL(weights), WEIGHTS_BYTES, m->stream));
    }
    TRY(cuStreamSynchronize(m->stream));
    record(m);
    return 0;
}

static int32_t enter(struct model* m) {
    TRY(cuCtxPushCurrent_v2(m->context));
    return 0;
}

static void leave(struct model* m) {
    CUcontext old = NULL;
    m->cu.cuCtxPopCurrent_v2(&old);
}

static void release(struct model* m) {
    if (m->graph) {
        m->cu.cuGraphExecDestroy(m->graph);
    }
    for (unsigned i = 0; i < INPUT_COUNT; i++) {
        if (m->inputs[i]) {
            m->cu.cuMemFree_v2(m->inputs[i]);
        }
    }
    for (unsigned i = 0; i < OUTPUT_COUNT; i++) {
        if (m->outputs[i]) {
            m->cu.cuMemFree_v2(m->outputs[i]);
        }
    }
    if (m->arena) {
        m->cu.cuMemFree_v2(m->arena);
    }
    if (m->weights) {
        m->cu.cuMemFree_v2(m->weights);
    }
    if (m->stream) {
        m->cu.cuStreamDestroy_v2(m->stream);
    }
    if (m->module) {
        m->cu.cuModuleUnload(m->module);
    }
}

static int32_t open_device(struct model* m, int device) {
    int count = 0;
    TRY(cuInit(0));
    TRY(cuDeviceGetCount(&count));
    if (device < 0 || device >= count) {
        char text[32];
        snprintf(text, sizeof text, "there are %d", count);
        return fail("there is no such CUDA device", text);
    }
    TRY(cuDeviceGet(&m->device, device));
    TRY(cuDevicePrimaryCtxRetain(&m->context, m->device));
    return 0;
}

int32_t MODEL(create)(MODEL(t) * *out, int device) {
    *out = NULL;
    struct model* m = calloc(1, sizeof *m);
    if (m == NULL) {
        return fail("no memory", "calloc");
    }
    int32_t code = load_driver(&m->cu);
    code = code ? code : open_device(m, device);
    if (!code) {
        code = enter(m);
        if (!code) {
            code = prepare(m);
            leave(m);
        }
    }
    if (code) {
        MODEL(destroy)((MODEL(t)*)m);
        return code;
    }
    *out = (MODEL(t)*)m;
    return 0;
}

static int32_t copy_in(struct model* m, const void* const* inputs) {
    for (unsigned i = 0; i < INPUT_COUNT; i++) {
        TRY(cuMemcpyHtoDAsync_v2(m->inputs[i], inputs[i], input_bytes[i], m->stream));
    }
    return 0;
}

static int32_t copy_out(struct model* m, void* const* outputs) {
    for (unsigned i = 0; i < OUTPUT_COUNT; i++) {
        TRY(cuMemcpyDtoHAsync_v2(outputs[i], m->outputs[i], output_bytes[i], m->stream));
    }
    return 0;
}

static int32_t copy_in_device(struct model* m, const unsigned long long* inputs) {
    for (unsigned i = 0; i < INPUT_COUNT; i++) {
        TRY(cuMemcpyDtoDAsync_v2(m->inputs[i], inputs[i], input_bytes[i], m->stream));
    }
    return 0;
}

static int32_t copy_out_device(struct model* m, const unsigned long long* outputs) {
    for (unsigned i = 0; i < OUTPUT_COUNT; i++) {
        TRY(cuMemcpyDtoDAsync_v2(outputs[i], m->outputs[i], output_bytes[i], m->stream));
    }
    return 0;
}

static int32_t execute(struct model* m) {
    if (m->graph == NULL) {
        return launch_all(m);
    }
    TRY(cuGraphLaunch(m->graph, m->stream));
    return 0;
}

static int32_t wait(struct model* m) {
    TRY(cuStreamSynchronize(m->stream));
    return 0;
}

int32_t MODEL(run)(MODEL(t) * self, const void* const* inputs, void* const* outputs) {
    struct model* m = (struct model*)self;
    int32_t code = enter(m);
    if (code) {
        return code;
    }
    code = copy_in(m, inputs);
    code = code ? code : execute(m);
    code = code ? code : copy_out(m, outputs);
    code = code ? code : wait(m);
    leave(m);
    return code;
}

int32_t MODEL(run_device)(MODEL(t) * self, const unsigned long long* inputs,
                          const unsigned long long* outputs) {
    struct model* m = (struct model*)self;
    int32_t code = enter(m);
    if (code) {
        return code;
    }
    code = copy_in_device(m, inputs);
    code = code ? code : execute(m);
    code = code ? code : copy_out_device(m, outputs);
    code = code ? code : wait(m);
    leave(m);
    return code;
}

void MODEL(destroy)(MODEL(t) * self) {
    struct model* m = (struct model*)self;
    if (m == NULL) {
        return;
    }
    if (m->context != NULL) {
        if (enter(m) == 0) {
            release(m);
            leave(m);
        }
        m->cu.cuDevicePrimaryCtxRelease_v2(m->device);
    }
    if (m->cu.library != NULL) {
        dlclose(m->cu.library);
    }
    free(m);
}
