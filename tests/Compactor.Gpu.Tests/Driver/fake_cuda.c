// A CUDA driver without a device: memory is the host's, work is done when it is queued, kernels do nothing. It counts what is created and destroyed, checks that a context
// is current where the real driver needs one, and fails where it is told to.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef void* handle;

static struct { char call[64]; int status, after; } fault;
static int version = 12040, capability = 90, pools = 1;
static int capturing, depth, retained, modules, streams, events, graphs, blocks, pinned, allocations, launches, graph_launches;
static handle current[16];
static handle context_of_work, stream_of_work; // of the last allocation, copy or launch that names a stream
static struct { unsigned grid[3], threads, shared; } last;

void fake_reset(int v, int c, int p) { version = v; capability = c; pools = p; fault.call[0] = 0; capturing = allocations = launches = graph_launches = 0; depth = retained = modules = streams = events = graphs = blocks = pinned = 0; }
void fake_capture(int on) { capturing = on; }
void fake_fail(const char* call, int status) { strncpy(fault.call, call, sizeof fault.call - 1); fault.status = status; fault.after = 0; }
// The call works so many times more, and then fails.
void fake_fail_later(const char* call, int status, int after) { fake_fail(call, status); fault.after = after; }
int fake_depth(void) { return depth; }
int fake_retained(void) { return retained; }
int fake_alive(void) { return modules + streams + events + graphs + blocks + pinned; }
int fake_allocations(void) { return allocations; }
int fake_launches(void) { return launches; }
int fake_graph_launches(void) { return graph_launches; }
int fake_capturing(void) { return capturing; }
handle fake_context(void) { return context_of_work; }
handle fake_stream(void) { return stream_of_work; }

// Status of a call: that asked for, or 201 (invalid context) where none is current.
static int enter(const char* call, int needs_context)
{
    if (strcmp(fault.call, call) == 0 && fault.after-- <= 0)
        return fault.status;
    return needs_context && depth == 0 ? 201 : 0;
}
static void note(handle stream) { context_of_work = current[depth - 1]; stream_of_work = stream; }
#define BEGIN(call, needs) int status = enter(call, needs); if (status != 0) return status
// What CUDA refuses while a stream is captured, on any thread: calls that are not queued or whose result is not known yet, and the stream that waits for all others.
#define NOT_CAPTURED(condition) if (capturing && (condition)) return 900
#define LEGACY(s) ((s) == 0 || (s) == (handle)1)

int cuGetErrorName(int e, const char** s)
{
    *s = e == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : e == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : e == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" : e == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : e == 701 ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" : e == 900 ? "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" : e == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : "CUDA_ERROR_OTHER";
    return 0;
}
int cuGetErrorString(int e, const char** s) { *s = e == 2 ? "out of memory" : e == 700 ? "an illegal memory access was encountered" : "an error"; return 0; }
int cuInit(unsigned flags) { (void)flags; BEGIN("cuInit", 0); return 0; }
int cuDriverGetVersion(int* v) { *v = version; return 0; }
int cuDeviceGetCount(int* n) { *n = 1; return 0; }
int cuDeviceGet(int* d, int i) { *d = i; return 0; }
int cuDeviceGetName(char* s, int n, int d) { (void)d; strncpy(s, "Fake GPU", n); return 0; }
int cuDeviceTotalMem_v2(size_t* n, int d) { (void)d; *n = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int* v, int a, int d)
{
    (void)d;
    *v = a == 75 ? capability / 10 : a == 76 ? capability % 10 : a == 16 ? 132 : a == 81 ? 233472 : a == 97 ? 232448 : a == 115 ? pools : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(handle* c, int d) { (void)d; retained++; *c = (handle)0x1000; return 0; }
int cuDevicePrimaryCtxRelease_v2(int d) { (void)d; retained--; return 0; }
int cuCtxPushCurrent_v2(handle c) { BEGIN("cuCtxPushCurrent", 0); current[depth++] = c; return 0; }
int cuCtxPopCurrent_v2(handle* c) { *c = current[--depth]; return 0; }
int cuCtxGetDevice(int* d) { BEGIN("cuCtxGetDevice", 1); *d = 0; return 0; }
int cuModuleLoadDataEx(handle* m, const void* image, unsigned n, int* o, void** v)
{
    (void)o; (void)v; (void)n;
    BEGIN("cuModuleLoadDataEx", 1); NOT_CAPTURED(1);
    modules++;
    *m = (handle)image;
    return memcmp(image, "\177ELF", 4) == 0 ? 0 : 200;
}
int cuModuleUnload(handle m) { (void)m; BEGIN("cuModuleUnload", 1); modules--; return 0; }
int cuModuleGetFunction(handle* f, handle m, const char* name) { (void)m; (void)name; BEGIN("cuModuleGetFunction", 1); *f = (handle)0x2000; return 0; }
int cuFuncGetAttribute(int* v, int a, handle f) { (void)f; (void)a; BEGIN("cuFuncGetAttribute", 1); *v = 40; return 0; }
int cuFuncSetAttribute(handle f, int a, int v) { (void)f; (void)a; (void)v; BEGIN("cuFuncSetAttribute", 1); return 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* n, handle f, int threads, size_t shared) { (void)f; (void)threads; (void)shared; BEGIN("cuOccupancy", 1); *n = 2; return 0; }
int cuLaunchKernel(handle f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, handle s, void** p, void** e)
{
    (void)f; (void)by; (void)bz; (void)p; (void)e;
    BEGIN("cuLaunchKernel", 1); NOT_CAPTURED(LEGACY(s)); note(s);
    launches++;
    last.grid[0] = gx; last.grid[1] = gy; last.grid[2] = gz; last.threads = bx; last.shared = shared;
    return 0;
}
int cuStreamCreate(handle* s, unsigned flags) { (void)flags; BEGIN("cuStreamCreate", 1); streams++; *s = (handle)0x3000; return 0; }
int cuStreamDestroy_v2(handle s) { (void)s; BEGIN("cuStreamDestroy", 1); streams--; return 0; }
int cuStreamSynchronize(handle s) { (void)s; BEGIN("cuStreamSynchronize", 1); NOT_CAPTURED(1); return 0; }
int cuStreamWaitEvent(handle s, handle e, unsigned f) { (void)s; (void)e; (void)f; BEGIN("cuStreamWaitEvent", 1); NOT_CAPTURED(LEGACY(s)); return 0; }
int cuStreamIsCapturing(handle s, int* c) { (void)s; *c = capturing; BEGIN("cuStreamIsCapturing", 1); return 0; }
int cuEventCreate(handle* e, unsigned flags) { (void)flags; BEGIN("cuEventCreate", 1); events++; *e = (handle)0x4000; return 0; }
int cuEventDestroy_v2(handle e) { (void)e; BEGIN("cuEventDestroy", 1); events--; return 0; }
int cuEventRecord(handle e, handle s) { (void)e; (void)s; BEGIN("cuEventRecord", 1); NOT_CAPTURED(LEGACY(s)); return 0; }
int cuEventQuery(handle e) { (void)e; BEGIN("cuEventQuery", 1); NOT_CAPTURED(1); return 0; }
int cuEventSynchronize(handle e) { (void)e; BEGIN("cuEventSynchronize", 1); NOT_CAPTURED(1); return 0; }
int cuEventElapsedTime(float* t, handle a, handle b) { (void)a; (void)b; *t = 0; return 0; }
static int take(handle* p, size_t n, int* count) { *p = aligned_alloc(256, (n + 255) / 256 * 256); (*count)++; allocations++; return *p ? 0 : 2; }
int cuMemAlloc_v2(handle* p, size_t n) { BEGIN("cuMemAlloc", 1); NOT_CAPTURED(1); return take(p, n, &blocks); }
int cuMemFree_v2(handle p) { BEGIN("cuMemFree", 1); NOT_CAPTURED(1); free(p); blocks--; return 0; }
int cuMemAllocAsync(handle* p, size_t n, handle s) { BEGIN("cuMemAllocAsync", 1); NOT_CAPTURED(LEGACY(s)); note(s); return pools ? take(p, n, &blocks) : 801; }
int cuMemFreeAsync(handle p, handle s) { (void)s; BEGIN("cuMemFreeAsync", 1); NOT_CAPTURED(LEGACY(s)); free(p); blocks--; return 0; }
int cuMemAllocHost_v2(handle* p, size_t n) { BEGIN("cuMemAllocHost", 1); NOT_CAPTURED(1); return take(p, n, &pinned); }
int cuMemFreeHost(handle p) { BEGIN("cuMemFreeHost", 1); NOT_CAPTURED(1); free(p); pinned--; return 0; }
int cuMemGetInfo_v2(size_t* f, size_t* t) { *f = 1000; *t = 2000; return 0; }
int cuMemcpyHtoDAsync_v2(handle d, const void* s, size_t n, handle st) { BEGIN("cuMemcpyHtoDAsync", 1); NOT_CAPTURED(LEGACY(st)); note(st); memcpy(d, s, n); return 0; }
int cuMemcpyDtoHAsync_v2(void* d, handle s, size_t n, handle st) { BEGIN("cuMemcpyDtoHAsync", 1); NOT_CAPTURED(LEGACY(st)); note(st); memcpy(d, s, n); return 0; }
int cuMemcpyDtoDAsync_v2(handle d, handle s, size_t n, handle st) { (void)st; BEGIN("cuMemcpyDtoDAsync", 1); NOT_CAPTURED(LEGACY(st)); memcpy(d, s, n); return 0; }
int cuMemsetD8Async(handle d, unsigned char v, size_t n, handle s) { BEGIN("cuMemsetD8Async", 1); NOT_CAPTURED(LEGACY(s)); note(s); memset(d, v, n); return 0; }
int cuDeviceGetDefaultMemPool(handle* p, int d) { (void)d; *p = (handle)0x5000; return 0; }
int cuMemPoolSetAttribute(handle p, int a, void* v) { (void)p; (void)a; (void)v; return 0; }
int cuStreamBeginCapture_v2(handle s, int mode) { (void)mode; BEGIN("cuStreamBeginCapture", 1); NOT_CAPTURED(1); if (LEGACY(s)) return 900; capturing = 1; return 0; }
int cuStreamEndCapture(handle s, handle* g) { (void)s; *g = 0; if (!capturing) return 901; capturing = 0; BEGIN("cuStreamEndCapture", 1); graphs++; *g = (handle)0x6000; return 0; }
int cuGraphInstantiateWithFlags(handle* e, handle g, unsigned long long flags) { (void)g; (void)flags; BEGIN("cuGraphInstantiate", 1); graphs++; *e = (handle)0x7000; return 0; }
int cuGraphLaunch(handle e, handle s) { (void)e; BEGIN("cuGraphLaunch", 1); note(s); graph_launches++; return 0; }
int cuGraphDestroy(handle g) { (void)g; BEGIN("cuGraphDestroy", 1); graphs--; return 0; }
int cuGraphExecDestroy(handle e) { (void)e; BEGIN("cuGraphExecDestroy", 1); graphs--; return 0; }
