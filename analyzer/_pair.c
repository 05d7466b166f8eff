/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: Python's face of pairing, and nothing else: arguments in, columns out, the GIL released between. Which rows
 * answer each other is _connections.h's business, what stands for a flow _flows.h's.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_columns.h"

struct pairing_object {
    PyObject_HEAD Py_buffer rows;
    struct pairing pairing;
    struct flows flows;
};

static struct pairing_object *of(PyObject *self)
{
    return (struct pairing_object *)self;
}

/* Whole elements of `size` bytes; the caller releases the view. -1 with an exception set. */
static int elements(PyObject *buffer, Py_buffer *view, size_t size)
{
    if (PyObject_GetBuffer(buffer, view, PyBUF_SIMPLE))
        return -1;
    if (!((size_t)view->len % size) && (size_t)view->len / size < NONE / 2)
        return 0;
    PyErr_Format(PyExc_ValueError, "elements of %zu bytes, fewer than 2**31, in a buffer of %zd", size, view->len);
    PyBuffer_Release(view);
    return -1;
}

static int note_named(struct pairing *p, const Py_buffer *ports)
{
    p->named = calloc(NAMED_BYTES, 1);
    for (size_t i = 0; p->named && i < (size_t)ports->len / sizeof(__u32); i++) {
        __u32 bit = ((const __u32 *)ports->buf)[i] & (NAMED_BYTES * 8 - 1);

        p->named[bit / 8] |= (__u8)(1u << (bit % 8));
    }
    return p->named ? 0 : -1;
}

static int find_all(struct pairing_object *o, const Py_buffer *ports)
{
    int failed;

    Py_BEGIN_ALLOW_THREADS;
    failed = note_named(&o->pairing, ports) || pair_rows(&o->pairing) || find_flows(&o->flows);
    Py_END_ALLOW_THREADS;
    return failed;
}

static int pairing_init(PyObject *self, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    struct pairing_object *o = of(self);
    PyObject *rows, *ports, *listeners;
    Py_buffer of_ports, of_listeners;
    unsigned long long seed;
    int failed;

    if (!PyArg_ParseTuple(args, "OOOK", &rows, &ports, &listeners, &seed))
        return -1;
    if (o->rows.obj) {
        PyErr_SetString(PyExc_RuntimeError, "a pairing is of one table");
        return -1;
    }
    if (elements(rows, &o->rows, sizeof(struct flow_row)))
        return -1;
    if (elements(ports, &of_ports, sizeof(__u32)))
        return -1;
    if (elements(listeners, &of_listeners, sizeof(struct endpoint))) {
        PyBuffer_Release(&of_ports);
        return -1;
    }
    o->pairing.rows = o->rows.buf;
    o->pairing.row_count = (__u32)((size_t)o->rows.len / sizeof(struct flow_row));
    o->pairing.seed = seed;
    o->pairing.listeners = of_listeners.buf;
    o->pairing.listener_count = (__u32)((size_t)of_listeners.len / sizeof(struct endpoint));
    o->flows.p = &o->pairing;
    failed = find_all(o, &of_ports);
    o->pairing.listener_count = 0;
    PyBuffer_Release(&of_ports);
    PyBuffer_Release(&of_listeners);
    if (failed)
        PyErr_NoMemory();
    return failed ? -1 : 0;
}

static void pairing_dealloc(PyObject *self)
{
    struct pairing_object *o = of(self);
    PyTypeObject *type = Py_TYPE(self);

    flows_free(&o->flows);
    pairing_free(&o->pairing);
    if (o->rows.obj)
        PyBuffer_Release(&o->rows);
    PyObject_Free(self);
    Py_DECREF(type);
}

static Py_ssize_t pairing_length(PyObject *self)
{
    return of(self)->flows.count;
}

/* ---- observers ---- */

/* Elements of `size` bytes, and how many there are. */
static void *copy_of(PyObject *buffer, size_t size, __u32 *count)
{
    Py_buffer view;
    void *copy;

    if (elements(buffer, &view, size))
        return NULL;
    *count = (__u32)((size_t)view.len / size);
    copy = malloc((size_t)view.len + 1);
    if (copy)
        memcpy(copy, view.buf, (size_t)view.len);
    else
        PyErr_NoMemory();
    PyBuffer_Release(&view);
    return copy;
}

/* Whether `turn` numbers all observers, and each row has one of them. */
static bool fits(const struct observers *o, const struct pairing *p)
{
    for (__u32 i = 0; i < o->count; i++)
        if (o->turn[i] >= o->count)
            return false;
    return p->interfaces <= o->count;
}

static PyObject *pairing_observe(PyObject *self, PyObject *args)
{
    struct observers *o = &of(self)->flows.observers;
    PyObject *turn, *chain, *window;
    __u32 counts[3] = {0};

    if (!PyArg_ParseTuple(args, "OOO", &turn, &chain, &window))
        return NULL;
    if (o->turn) {
        PyErr_SetString(PyExc_RuntimeError, "the observers are known");
        return NULL;
    }
    if (!(o->turn = copy_of(turn, sizeof(*o->turn), &counts[0])) ||
        !(o->chain = copy_of(chain, sizeof(*o->chain), &counts[1])) ||
        !(o->window = copy_of(window, sizeof(*o->window), &counts[2])))
        return NULL;
    o->count = counts[0];
    if (counts[1] != o->count || counts[2] != o->count || !fits(o, &of(self)->pairing)) {
        PyErr_SetString(PyExc_ValueError, "the observers are not those of the rows");
        o->count = 0;
        return NULL;
    }
    o->by_turn = calloc((size_t)o->count + 1, sizeof(*o->by_turn));
    if (!o->by_turn)
        return PyErr_NoMemory();
    for (__u32 i = 0; i < o->count; i++)
        o->by_turn[o->turn[i]] = i;
    Py_RETURN_NONE;
}

/* ---- columns ---- */

/* A column in a dict: a bytearray of `count` elements; where its memory is. */
static void *add_column(PyObject *dict, const char *name, size_t size, __u64 count)
{
    PyObject *bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(size * count));
    void *at = bytes && !PyDict_SetItemString(dict, name, bytes) ? PyByteArray_AsString(bytes) : NULL;

    Py_XDECREF(bytes);
    return at;
}

static bool add_columns(PyObject *dict, struct columns *columns, __u64 count)
{
#define ADD(name, type)                                                                                                \
    if (!(columns->name = add_column(dict, #name, sizeof(type), count)))                                               \
        return false;
    COLUMNS(ADD)
#undef ADD
    return true;
}

static PyObject *with_texts(PyObject *dict, const struct texts *texts)
{
    size_t length = (size_t)texts->offsets[texts->count];
    char *bytes = add_column(dict, "texts", 1, length);
    __s32 *offsets = add_column(dict, "offsets", sizeof(*offsets), (__u64)texts->count + 1);

    if (!bytes || !offsets)
        return NULL;
    memcpy(bytes, texts->bytes, length);
    memcpy(offsets, texts->offsets, ((size_t)texts->count + 1) * sizeof(*offsets));
    return dict;
}

static PyObject *pairing_columns(PyObject *self, PyObject *args)
{
    struct emission e = {.flows = &of(self)->flows};
    unsigned long long begin, end;
    int sorted, failed = -1;
    PyObject *dict, *result = NULL;

    if (!PyArg_ParseTuple(args, "KKp", &begin, &end, &sorted))
        return NULL;
    if (begin > end || end > e.flows->count || !e.flows->observers.by_turn) {
        PyErr_SetString(PyExc_ValueError, "flows that are not there, or nobody observed them");
        return NULL;
    }
    dict = PyDict_New();
    if (dict && add_columns(dict, &e.columns, end - begin)) {
        Py_BEGIN_ALLOW_THREADS;
        failed = emit(&e, begin, end, sorted);
        Py_END_ALLOW_THREADS;
        result = failed ? PyErr_NoMemory() : with_texts(dict, &e.texts);
    }
    emission_free(&e);
    if (!result)
        Py_XDECREF(dict);
    return result;
}

static PyObject *pairing_flow_of_row(PyObject *self, PyObject *Py_UNUSED(none))
{
    const struct flows *f = &of(self)->flows;
    PyObject *bytes = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)(f->p->row_count * sizeof(__u32)));
    __u32 *flow = bytes ? (__u32 *)PyByteArray_AsString(bytes) : NULL;

    for (__u32 i = 0; flow && i < f->count; i++)
        for (__u32 at = f->begin[i]; at < f->begin[i + 1]; at++)
            flow[f->rows[at]] = i;
    return bytes;
}

static PyMethodDef pairing_methods[] = {
    {"observe", pairing_observe, METH_VARARGS,
     "observe(turn, chain, window) -> None: of each observer uint32, uint32 and two uint64 (ns); flows have columns "
     "only then"},
    {"columns", pairing_columns, METH_VARARGS,
     "columns(begin, end, sorted) -> dict of bytearray: flows in order of their start, and the texts of their "
     "addresses, in numerical order where `sorted`"},
    {"flow_of_row", pairing_flow_of_row, METH_NOARGS, "flow_of_row() -> bytearray of uint32, one for each row"},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot pairing_slots[] = {
    {Py_tp_doc,
     "Pairing(rows, ports, listeners, seed): struct flow_row to flows. ports: uint32, protocol << 16 | port; "
     "listeners: struct endpoint."},
    {Py_tp_init, pairing_init},
    {Py_tp_dealloc, pairing_dealloc},
    {Py_tp_methods, pairing_methods},
    {Py_tp_new, PyType_GenericNew},
    {Py_sq_length, pairing_length},
    {0, NULL},
};
static PyType_Spec pairing_spec = {
    .name = "analyzer._pair.Pairing",
    .basicsize = sizeof(struct pairing_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = pairing_slots,
};

/* ---- functions ---- */

static PyObject *module_windows(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *buffer, *list = NULL;
    Py_buffer view;
    unsigned int observers;
    __u64(*windows)[2];

    if (!PyArg_ParseTuple(args, "OI", &buffer, &observers) || elements(buffer, &view, sizeof(struct flow_row)))
        return NULL;
    windows = malloc(observers * sizeof(*windows) + 1);
    for (unsigned i = 0; windows && i < observers; i++) {
        windows[i][0] = FLOW_NO_TIME;
        windows[i][1] = 0;
    }
    for (size_t i = 0; windows && i < (size_t)view.len / sizeof(struct flow_row); i++) {
        const struct flow_row *row = (const struct flow_row *)view.buf + i;
        __u64 *window = row->key.interface < observers ? windows[row->key.interface] : NULL;

        if (window && row->counters.start < window[0])
            window[0] = row->counters.start;
        if (window && row->counters.end > window[1])
            window[1] = row->counters.end;
    }
    list = windows ? PyList_New(observers) : PyErr_NoMemory();
    for (unsigned i = 0; list && i < observers; i++) {
        PyObject *pair = Py_BuildValue("KK", windows[i][0], windows[i][1]);

        if (!pair || PyList_SetItem(list, i, pair))
            Py_CLEAR(list);
    }
    free(windows);
    PyBuffer_Release(&view);
    return list;
}

static PyMethodDef module_methods[] = {
    {"windows", module_windows, METH_VARARGS,
     "windows(rows, observers) -> list of (start, end) in ns: what each observer's rows span"},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&pairing_spec);

    return type ? PyModule_AddObject(module, "Pairing", type) : -1;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};
static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_pair",
    .m_doc = "One-way rows to flows, without the GIL.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__pair(void)
{
    return PyModuleDef_Init(&module_def);
}
