package names

import (
	"hash/maphash"
	"iter"
	"net/netip"
	"slices"
)

// reverse finds the endpoints with an address. There are so many in a large cluster that a map of
// lists would take more than the endpoints themselves: this is a table of eight bytes for each, with
// open addressing, whose keys are read where they are.
type reverse struct {
	seed  maphash.Seed
	slots []slot
	used  int // slots that are not free, those of endpoints that left included
	left  int
	byID  []*slice // by id-1; nil where an id is free
	free  []uint32
}

// slot points at one address of a slice. The zero value is free.
type slot struct {
	id uint32
	i  uint32 // gone when the endpoint left
}

const gone = 1<<32 - 1

// endpointRef points at one address of a slice.
type endpointRef struct {
	slice *slice
	i     int
}

func newReverse() reverse { return reverse{seed: maphash.MakeSeed(), slots: make([]slot, 64)} }

func (r *reverse) hash(a netip.Addr) uint64 {
	b := a.As16()
	return maphash.Bytes(r.seed, b[:])
}

// add takes in the endpoints of a slice, and gives it an id.
func (r *reverse) add(s *slice) {
	if n := len(r.free); n > 0 {
		s.id, r.free = r.free[n-1], r.free[:n-1]
		r.byID[s.id-1] = s
	} else {
		r.byID = append(r.byID, s)
		s.id = uint32(len(r.byID))
	}
	if 4*(r.used+len(s.Endpoints)) > 3*len(r.slots) {
		r.grow(r.used - r.left + len(s.Endpoints))
	}
	for i := range s.Endpoints {
		r.put(slot{s.id, uint32(i)})
	}
}

// grow makes room for n endpoints, and drops what left.
func (r *reverse) grow(n int) {
	size := 64
	for size < n+n/2 {
		size *= 2
	}
	old := r.slots
	r.slots, r.used, r.left = make([]slot, size), 0, 0
	for _, s := range old {
		if s.id != 0 && s.i != gone {
			r.put(s)
		}
	}
}

func (r *reverse) put(s slot) {
	for at := r.hash(r.addr(s)); ; at++ {
		if to := &r.slots[at%uint64(len(r.slots))]; to.id == 0 {
			*to = s
			r.used++
			return
		}
	}
}

func (r *reverse) addr(s slot) netip.Addr { return r.byID[s.id-1].Endpoints[s.i].Addr }

// remove forgets the endpoints of a slice.
func (r *reverse) remove(s *slice) {
	for i, e := range s.Endpoints {
		for at := r.hash(e.Addr); ; at++ {
			if have := &r.slots[at%uint64(len(r.slots))]; *have == (slot{s.id, uint32(i)}) {
				have.i = gone
				r.left++
				break
			}
		}
	}
	r.byID[s.id-1] = nil
	r.free = append(r.free, s.id)
	if size := len(r.slots); size > 64 && 8*(r.used-r.left) < size {
		r.grow(r.used - r.left)
	}
}

// find appends every endpoint with an address, in order of their slices' names.
func (r *reverse) find(out []endpointRef, a netip.Addr) []endpointRef {
	for at := r.hash(a); ; at++ {
		s := r.slots[at%uint64(len(r.slots))]
		if s.id == 0 {
			break
		}
		if s.i != gone && r.addr(s) == a {
			out = append(out, endpointRef{r.byID[s.id-1], int(s.i)})
		}
	}
	if len(out) > 1 {
		slices.SortFunc(out, compareRefs)
	}
	return out
}

func compareRefs(a, b endpointRef) int {
	if c := compareSlices(a.slice, b.slice); c != 0 {
		return c
	}
	return a.i - b.i
}

// all goes over the addresses of endpoints, in no order and with duplicates.
func (r *reverse) all() iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, s := range r.slots {
			if s.id != 0 && s.i != gone && !yield(r.addr(s)) {
				return
			}
		}
	}
}
