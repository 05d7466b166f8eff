/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rule: Python's face of the native reader, and nothing else: arguments in, buffers out, the GIL released between.
 * What a packet means is packet.h's business, what a row is flow.h's, which way a flow goes flows.py's.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_stream.h"

struct reader_object {
    PyObject_HEAD struct reader reader;
    struct stream stream;
    bool busy;
};

static struct reader *reader_of(PyObject *self)
{
    return &((struct reader_object *)self)->reader;
}

static struct stream *stream_of(PyObject *self)
{
    return &((struct reader_object *)self)->stream;
}

static void set_busy(PyObject *self, bool busy)
{
    ((struct reader_object *)self)->busy = busy;
}

/* False, with an exception set, while another thread fills the reader. */
static bool is_idle(PyObject *self)
{
    if (((struct reader_object *)self)->busy)
        PyErr_SetString(PyExc_RuntimeError, "another thread is filling this reader");
    return !((struct reader_object *)self)->busy;
}

/* A block of memory that the reader has handed over. */
struct block {
    PyObject_HEAD void *bytes;
    Py_ssize_t length;
};

static int block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    struct block *block = (struct block *)self;

    return PyBuffer_FillInfo(view, self, block->bytes, block->length, 0, flags);
}

static void block_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);

    free(((struct block *)self)->bytes);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot block_slots[] = {
    {Py_tp_doc, "Memory handed over by the reader, readable through the buffer protocol."},
    {Py_tp_dealloc, block_dealloc},
    {Py_bf_getbuffer, block_getbuffer},
    {0, NULL},
};
static PyType_Spec block_spec = {
    .name = "analyzer.capture._reader.Block",
    .basicsize = sizeof(struct block),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = block_slots,
};
static PyTypeObject *block_type;

static PyObject *block_new(void *bytes, size_t length)
{
    struct block *block = PyObject_New(struct block, block_type);

    if (!block) {
        free(bytes);
        return NULL;
    }
    block->bytes = bytes;
    block->length = (Py_ssize_t)length;
    return (PyObject *)block;
}

static int reader_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seed", "interval", "max_rows", NULL};
    struct reader *r = reader_of(self);
    unsigned long long seed, interval, max_rows = 0;

    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "KK|K", names, &seed, &interval, &max_rows))
        return -1;
    if (r->meter.fragments) {
        PyErr_SetString(PyExc_RuntimeError, "a reader reads one capture");
        return -1;
    }
    if (meter_init(&r->meter, seed, interval, max_rows)) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static void reader_dealloc(PyObject *self)
{
    struct reader *r = reader_of(self);
    PyTypeObject *type = Py_TYPE(self);

    meter_free(&r->meter);
    stream_free(stream_of(self));
    free(r->interfaces);
    PyObject_Free(self);
    Py_DECREF(type);
}

/* False, with an exception set, where nothing more can be read. */
static bool is_reading(PyObject *self)
{
    if (!is_idle(self))
        return false;
    if (!reader_of(self)->meter.table.index)
        PyErr_SetString(PyExc_RuntimeError, "the reader's rows were taken");
    return reader_of(self)->meter.table.index;
}

static PyObject *reader_consume(PyObject *self, PyObject *buffer)
{
    struct reader *r = reader_of(self);
    Py_buffer view;

    if (!is_reading(self) || PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE))
        return NULL;
    set_busy(self, true);
    Py_BEGIN_ALLOW_THREADS;
    (stream_is_packed(stream_of(self)) ? stream_put_packed : stream_put)(stream_of(self), r, view.buf,
                                                                         (size_t)view.len);
    Py_END_ALLOW_THREADS;
    set_busy(self, false);
    PyBuffer_Release(&view);
    if (r->meter.no_memory)
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *reader_unpack(PyObject *self, PyObject *args)
{
    const struct packing *packing;
    struct stream *s = stream_of(self);
    unsigned long long size;
    const char *name;
    int is_ahead;

    if (!PyArg_ParseTuple(args, "sKp", &name, &size, &is_ahead) || !is_reading(self))
        return NULL;
    if (!(packing = packing_named(name)) || !size || size > PIECE_MAX)
        return PyErr_Format(PyExc_ValueError, "gzip, zstd or lz4, in pieces of 1 to %d bytes", PIECE_MAX);
    if (stream_is_packed(s) || s->length || reader_of(self)->offset)
        return PyErr_Format(PyExc_RuntimeError, "how a capture is packed is known before its first byte");
    if (stream_unpack(s, packing, (size_t)size, is_ahead))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

/* As in PEP 475: who sent a signal is heard, and what it interrupted goes on. */
static int read_for(PyObject *self, int descriptor, __u64 ns, __u64 *count)
{
    int went;

    do {
        set_busy(self, true);
        Py_BEGIN_ALLOW_THREADS;
        went = stream_read(stream_of(self), reader_of(self), descriptor, ns, count);
        Py_END_ALLOW_THREADS;
        set_busy(self, false);
    } while (went < 0 && errno == EINTR && !PyErr_CheckSignals());
    return went;
}

static PyObject *reader_read(PyObject *self, PyObject *args)
{
    unsigned long long size, ns;
    int descriptor, went;
    __u64 count;

    if (!PyArg_ParseTuple(args, "iKK", &descriptor, &size, &ns) || !is_reading(self))
        return NULL;
    if (!size || size > PIECE_MAX)
        return PyErr_Format(PyExc_ValueError, "pieces of 1 to %d bytes", PIECE_MAX);
    if (stream_make_room(stream_of(self), (size_t)size))
        return PyErr_NoMemory();
    went = read_for(self, descriptor, ns, &count);
    if (reader_of(self)->meter.no_memory)
        return PyErr_NoMemory();
    if (went < 0)
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    if (!went)
        Py_RETURN_NONE;
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *reader_end(PyObject *self, PyObject *Py_UNUSED(none))
{
    if (!is_idle(self))
        return NULL;
    set_busy(self, true);
    Py_BEGIN_ALLOW_THREADS;
    stream_stop(stream_of(self));
    Py_END_ALLOW_THREADS;
    set_busy(self, false);
    Py_RETURN_NONE;
}

static PyObject *reader_count_beside(PyObject *self, PyObject *length)
{
    unsigned long packets = PyLong_AsUnsignedLong(length);

    if (PyErr_Occurred() || !is_idle(self))
        return NULL;
    if (!packets || packets > BATCH_LENGTH)
        return PyErr_Format(PyExc_ValueError, "from 1 to %d packets at a time", BATCH_LENGTH);
    queue_count_beside(&reader_of(self)->meter.queue, (unsigned)packets);
    Py_RETURN_NONE;
}

/* False, with an exception set, while another thread fills the reader or where memory is out. */
static bool is_settled(PyObject *self)
{
    struct meter *m = &reader_of(self)->meter;

    if (!is_idle(self))
        return false;
    set_busy(self, true);
    Py_BEGIN_ALLOW_THREADS;
    if (queue_settle(&m->queue))
        m->no_memory = true;
    Py_END_ALLOW_THREADS;
    set_busy(self, false);
    if (m->no_memory)
        PyErr_NoMemory();
    return !m->no_memory;
}

static PyObject *reader_fault(PyObject *self, PyObject *Py_UNUSED(none))
{
    return is_idle(self) ? PyUnicode_FromString(reader_of(self)->fault) : NULL;
}

static PyObject *reader_count(PyObject *self, PyObject *Py_UNUSED(none))
{
    return is_settled(self) ? PyLong_FromUnsignedLongLong(reader_of(self)->meter.table.count) : NULL;
}

/* A buffer of whole records of `size` bytes; the caller releases the view. */
static int records_of(PyObject *buffer, Py_buffer *view, size_t size)
{
    if (PyObject_GetBuffer(buffer, view, PyBUF_SIMPLE))
        return -1;
    if (!((size_t)view->len % size))
        return 0;
    PyErr_Format(PyExc_ValueError, "records of %zu bytes, in a buffer of %zd", size, view->len);
    PyBuffer_Release(view);
    return -1;
}

static PyObject *reader_select(PyObject *self, PyObject *args)
{
    struct reader *r = reader_of(self);
    PyObject *keys, *also;
    Py_buffer of_keys, of_also;
    unsigned long long limit;

    if (!PyArg_ParseTuple(args, "OKO", &keys, &limit, &also) || !is_idle(self))
        return NULL;
    if (!r->meter.fragments || r->meter.ledger.frames || r->meter.cut) {
        PyErr_SetString(PyExc_RuntimeError, "frames are selected once, before the first one is read");
        return NULL;
    }
    if (records_of(keys, &of_keys, sizeof(struct flow_key)))
        return NULL;
    if (records_of(also, &of_also, sizeof(__u64))) {
        PyBuffer_Release(&of_keys);
        return NULL;
    }
    r->meter.cut = cut_new(of_keys.buf, (size_t)of_keys.len / sizeof(struct flow_key), of_also.buf,
                           (size_t)of_also.len / sizeof(__u64), FRAGMENT_SETS * FRAGMENT_WAYS, r->meter.table.seed);
    PyBuffer_Release(&of_keys);
    PyBuffer_Release(&of_also);
    if (!r->meter.cut)
        return PyErr_NoMemory();
    r->meter.cut->limit = limit;
    Py_RETURN_NONE;
}

/* False, with an exception set, where there is no cut to ask. */
static bool is_cut(PyObject *self)
{
    if (!is_idle(self))
        return false;
    if (!reader_of(self)->meter.cut)
        PyErr_SetString(PyExc_RuntimeError, "nothing was selected");
    return reader_of(self)->meter.cut;
}

static PyObject *block_of(struct bytes *bytes)
{
    PyObject *block = block_new(bytes->at, bytes->length);

    *bytes = (struct bytes){0};
    return block;
}

static PyObject *reader_take_cut(PyObject *self, PyObject *Py_UNUSED(none))
{
    struct cut *cut = reader_of(self)->meter.cut;
    PyObject *frames, *index;

    if (!is_cut(self))
        return NULL;
    frames = block_of(&cut->frames);
    index = block_of(&cut->index);
    if (frames && index)
        return Py_BuildValue("NN", frames, index);
    Py_XDECREF(frames);
    Py_XDECREF(index);
    return NULL;
}

static PyObject *reader_late(PyObject *self, PyObject *Py_UNUSED(none))
{
    return is_cut(self) ? block_of(&reader_of(self)->meter.cut->late) : NULL;
}

static PyObject *reader_take_rows(PyObject *self, PyObject *Py_UNUSED(none))
{
    struct reader *r = reader_of(self);
    size_t length;
    void *rows;

    if (!is_settled(self))
        return NULL;
    length = r->meter.table.count * sizeof(struct flow_row);
    rows = r->meter.table.rows;
    if (!rows) {
        PyErr_SetString(PyExc_RuntimeError, "the reader's rows were taken");
        return NULL;
    }
    queue_free(&r->meter.queue);
    r->meter.table.rows = NULL;
    table_free(&r->meter.table);
    return block_new(rows, length);
}

static PyObject *reader_fragments(PyObject *self, PyObject *Py_UNUSED(none))
{
    struct reader *r = reader_of(self);
    size_t count = 0, all = FRAGMENT_SETS * FRAGMENT_WAYS;
    struct fragment_row *rows;

    if (!is_idle(self))
        return NULL;
    rows = malloc(all * sizeof(*rows));
    if (!rows)
        return PyErr_NoMemory();
    for (size_t i = 0; r->meter.fragments && i < all; i++)
        if (r->meter.fragments[i].used)
            rows[count++] = r->meter.fragments[i];
    return block_new(rows, count * sizeof(*rows));
}

static PyObject *reader_ledger(PyObject *self, PyObject *Py_UNUSED(none))
{
    const struct reader *r = reader_of(self);
    const struct ledger *l = &r->meter.ledger;
    const __u64 *no_room = r->meter.table.no_room;
    __u64 dropped = 0;

    if (!is_settled(self))
        return NULL;
    for (__u64 i = 0; i < r->interface_count; i++)
        dropped += r->interfaces[i].dropped;
    if (r->packet_drops > dropped)
        dropped = r->packet_drops;
    return Py_BuildValue("{sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK sK ss si sO}", "frames", l->frames,
                         "flow", l->results[PARSED] - no_room[0], "overflow", no_room[0], "inner_overflow", no_room[1],
                         "not_ip", l->results[NOT_IP], "truncated", l->results[TRUNCATED], "malformed",
                         l->results[MALFORMED], "unsupported", l->results[UNSUPPORTED], "fragment", l->fragments,
                         "inner_not_ip", l->inner[NOT_IP], "inner_truncated", l->inner[TRUNCATED], "inner_malformed",
                         l->inner[MALFORMED], "inner_fragment", l->inner_fragments, "lost", dropped, "start", l->start,
                         "end", l->end, "offset", r->offset, "rest", r->fault[0] ? 0 : (__u64)stream_of(self)->length,
                         "fault", r->fault, "format", (int)r->format, "whole",
                         r->fault[0] || stream_is_whole(stream_of(self)) ? Py_True : Py_False);
}

static PyObject *reader_interfaces(PyObject *self, PyObject *Py_UNUSED(none))
{
    const struct reader *r = reader_of(self);
    PyObject *list;

    if (!is_idle(self))
        return NULL;
    list = PyList_New((Py_ssize_t)r->interface_count);
    for (__u64 i = 0; list && i < r->interface_count; i++) {
        const char *name = r->interfaces[i].name;
        PyObject *text = PyUnicode_DecodeUTF8(name, (Py_ssize_t)strlen(name), "replace");

        if (!text || PyList_SetItem(list, (Py_ssize_t)i, text)) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static PyObject *reader_links(PyObject *self, PyObject *Py_UNUSED(none))
{
    const struct reader *r = reader_of(self);
    bool one = r->format == FORMAT_PCAP;
    Py_ssize_t count = one ? 1 : (Py_ssize_t)r->interface_count;
    PyObject *list;

    if (!is_idle(self))
        return NULL;
    list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *link = PyLong_FromUnsignedLong(one ? r->link : r->interfaces[i].link);

        if (!link || PyList_SetItem(list, i, link)) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static PyMethodDef reader_methods[] = {
    {"consume", reader_consume, METH_O,
     "consume(buffer) -> None: the capture's next bytes; what is no whole record yet is kept for the next call"},
    {"unpack", reader_unpack, METH_VARARGS,
     "unpack(packing, size, ahead) -> None: what comes is packed so (gzip, zstd, lz4), and is unpacked `size` bytes at "
     "a "
     "time, where `ahead` is set by a thread of its own, which reads what it can of a descriptor"},
    {"read", reader_read, METH_VARARGS,
     "read(descriptor, size, ns) -> int or None: consumes what is read from it for about so long, `size` bytes at a "
     "time; how many they were (packed), None at its end"},
    {"end", reader_end, METH_NOARGS, "end() -> None: nothing more is read; ends the thread that unpacks"},
    {"count_beside", reader_count_beside, METH_O,
     "count_beside(packets) -> None: from now on a thread beside the caller's counts, so many packets at a time, where "
     "one is to be had"},
    {"fault", reader_fault, METH_NOARGS, "fault() -> str: what is wrong with the file; empty so far"},
    {"count", reader_count, METH_NOARGS, "count() -> int: rows so far"},
    {"select", reader_select, METH_VARARGS,
     "select(keys, limit, also) -> None: instead of counting rows keep the frames of these struct flow_key, at most "
     "`limit` of each key where that is not 0, and those with these uint64 numbers"},
    {"take_cut", reader_take_cut, METH_NOARGS,
     "take_cut() -> (Block of enhanced packet blocks, Block of struct kept): the frames kept since the last call"},
    {"late", reader_late, METH_NOARGS,
     "late() -> Block of uint64: selected frames that were read before that was known"},
    {"links", reader_links, METH_NOARGS, "links() -> list of int: the interfaces' link types; a pcap file has one"},
    {"take_rows", reader_take_rows, METH_NOARGS, "take_rows() -> Block of struct flow_row; ends the reading"},
    {"fragments", reader_fragments, METH_NOARGS, "fragments() -> Block of struct fragment_row: unfinished datagrams"},
    {"ledger", reader_ledger, METH_NOARGS, "ledger() -> dict: frames by what became of them, window in ns, fault"},
    {"interfaces", reader_interfaces, METH_NOARGS, "interfaces() -> list of str: names, as pcapng gives them"},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot reader_slots[] = {
    {Py_tp_doc,
     "Reader(seed, interval, max_rows=0): one capture's bytes to one-way flow rows. interval in ns; 0 is none."},
    {Py_tp_init, reader_init},
    {Py_tp_dealloc, reader_dealloc},
    {Py_tp_methods, reader_methods},
    {Py_tp_new, PyType_GenericNew},
    {0, NULL},
};
static PyType_Spec reader_spec = {
    .name = "analyzer.capture._reader.Reader",
    .basicsize = sizeof(struct reader_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = reader_slots,
};

/* ---- functions ---- */

static PyObject *parse_layers(struct cursor *c, __u32 link)
{
    struct packet layers[PACKET_LAYERS] = {0};
    int results[PACKET_LAYERS], count = 1;
    PyObject *list;

    results[0] = parse_frame(c, link, &layers[0]);
    while (count < PACKET_LAYERS && results[count - 1] == PARSED && layers[count - 1].next != NEXT_NONE &&
           layers[count - 1].next != NEXT_CUT) {
        results[count] = parse_inner(c, &layers[count - 1], &layers[count]);
        count++;
    }
    list = PyList_New(0);
    for (int i = 0; list && i < count; i++) {
        PyObject *item = Py_BuildValue("iy#", results[i], (const char *)&layers[i], (Py_ssize_t)sizeof(layers[i]));

        if (!item || PyList_Append(list, item)) {
            Py_XDECREF(item);
            Py_CLEAR(list);
            break;
        }
        Py_DECREF(item);
    }
    return list;
}

static PyObject *module_parse(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned int link;
    unsigned long long wire;
    PyObject *buffer, *list;
    Py_buffer view;
    struct cursor c = {0};

    if (!PyArg_ParseTuple(args, "IOK", &link, &buffer, &wire) || PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE))
        return NULL;
    c.base = view.buf;
    c.have = (__u64)view.len;
    c.end = wire;
    list = parse_layers(&c, link);
    PyBuffer_Release(&view);
    return list;
}

/* Group numbers of n keys, in order of first appearance; exact, by comparing the keys. -1 when memory is out. */
static long long group_keys(const __u8 *keys, size_t n, size_t width, __u64 seed, __u32 *group, __u32 *first)
{
    size_t mask = 1023, at;
    struct index_slot *index;
    __u32 groups = 0;

    while (mask < n * 2)
        mask = mask * 2 + 1;
    index = calloc(mask + 1, sizeof(*index));
    if (!index)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const __u8 *key = keys + i * width;
        __u32 hash = (__u32)(hash_words(key, width / 8, seed) >> 32);

        for (at = hash & mask; index[at].row; at = (at + 1) & mask)
            if (index[at].hash == hash && !memcmp(keys + (size_t)first[index[at].row - 1] * width, key, width))
                break;
        if (!index[at].row) {
            first[groups++] = (__u32)i;
            index[at] = (struct index_slot){hash, groups};
        }
        group[i] = index[at].row - 1;
    }
    free(index);
    return groups;
}

static PyObject *group_result(const Py_buffer *view, size_t width, __u64 seed)
{
    size_t n = (size_t)view->len / width;
    __u32 *group = malloc(n * sizeof(*group) + 1), *first = malloc(n * sizeof(*first) + 1);
    long long groups = -1;
    PyObject *a, *b;

    if (group && first) {
        Py_BEGIN_ALLOW_THREADS;
        groups = group_keys(view->buf, n, width, seed, group, first);
        Py_END_ALLOW_THREADS;
    }
    if (groups < 0) {
        free(group);
        free(first);
        return PyErr_NoMemory();
    }
    a = block_new(group, n * sizeof(*group));
    b = block_new(first, (size_t)groups * sizeof(*first));
    if (a && b)
        return Py_BuildValue("NN", a, b);
    Py_XDECREF(a);
    Py_XDECREF(b);
    return NULL;
}

static PyObject *module_group(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long width, seed;
    PyObject *buffer, *result = NULL;
    Py_buffer view;

    if (!PyArg_ParseTuple(args, "OKK", &buffer, &width, &seed) || PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE))
        return NULL;
    if (!width || width % 8 || (__u64)view.len % width || (__u64)view.len / width >= 0xffffffffULL)
        PyErr_SetString(PyExc_ValueError, "keys must be a multiple of 8 bytes wide, and fewer than 2**32 - 1");
    else
        result = group_result(&view, (size_t)width, seed);
    PyBuffer_Release(&view);
    return result;
}

#define FIELD(type, field) #type "." #field, (int)offsetof(struct type, field)

static PyObject *module_layout(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return Py_BuildValue("{si si si si si si si si si si si si si si si si si si si si si si si si si si}", "flow_row",
                         (int)sizeof(struct flow_row), "fragment_row", (int)sizeof(struct fragment_row), "packet",
                         (int)sizeof(struct packet), FIELD(flow_row, interval), FIELD(flow_row, counters.packets),
                         FIELD(flow_row, counters.bytes), FIELD(flow_row, counters.start),
                         FIELD(flow_row, counters.end), FIELD(flow_row, counters.first_frame),
                         FIELD(flow_row, counters.unreachable), FIELD(flow_row, counters.tcp_flags),
                         FIELD(flow_row, counters.events), FIELD(flow_row, key.vni), FIELD(flow_row, key.interface),
                         FIELD(flow_row, key.src_port), FIELD(flow_row, key.dst_port), FIELD(flow_row, key.protocol),
                         FIELD(flow_row, key.tunnel), FIELD(flow_row, key.direction), FIELD(fragment_row, time),
                         FIELD(fragment_row, waiting), FIELD(fragment_row, id), FIELD(fragment_row, src_port),
                         FIELD(fragment_row, protocol), FIELD(fragment_row, has_first), FIELD(packet, bytes));
}

static PyMethodDef module_methods[] = {
    {"parse", module_parse, METH_VARARGS,
     "parse(link_type, frame, wire_length) -> list of (result, bytes of struct packet), outermost first"},
    {"group", module_group, METH_VARARGS,
     "group(keys, width, seed) -> (uint32 group of each key, uint32 first key of each group)"},
    {"layout", module_layout, METH_NOARGS, "layout() -> dict: sizes of structs and offsets of their fields"},
    {NULL, NULL, 0, NULL},
};

static int module_exec(PyObject *module)
{
    PyObject *reader = PyType_FromSpec(&reader_spec);

    block_type = (PyTypeObject *)PyType_FromSpec(&block_spec);
    if (!reader || !block_type)
        return -1;
    return PyModule_AddObject(module, "Reader", reader);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};
static struct PyModuleDef module_def = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_reader",
    .m_doc = "Capture bytes to one-way flow rows, without the GIL.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__reader(void)
{
    return PyModuleDef_Init(&module_def);
}
