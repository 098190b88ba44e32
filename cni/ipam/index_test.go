package ipam

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// fill reserves addresses for as many owners, as host-local would: without an index.
func fill(t testing.TB, dir string, n int) {
	t.Helper()
	a := netip.MustParseAddr("10.0.0.2")
	for i := range n {
		put(t, dir, a.String(), Owner{"old" + strconv.Itoa(i), "eth0"}.encode())
		a = a.Next()
	}
	put(t, dir, lastName+"0", a.Prev().String())
}

func wide(t testing.TB) []Set { return []Set{{mustRange(t, "10.0.0.0/16", "", "", "")}} }

// TestCostDoesNotGrow: what a call looks at is the same with ten reservations in the folder as with thousands.
func TestCostDoesNotGrow(t *testing.T) {
	cost := func(n int) (allocate, release int) {
		dir := t.TempDir()
		fill(t, dir, n)
		if _, err := open(dir).Allocate(pod2, wide(t)); err != nil { // reads everything, once
			t.Fatal(err)
		}
		s := open(dir)
		if _, err := s.Allocate(pod1, wide(t)); err != nil {
			t.Fatal(err)
		}
		allocate = s.looked
		s = open(dir)
		if freed, err := s.Release(pod1); err != nil || len(freed) != 1 {
			t.Fatal(freed, err)
		}
		return allocate, s.looked
	}
	a10, r10 := cost(10)
	a5000, r5000 := cost(5000)
	if a10 != a5000 || r10 != r5000 || a5000 > 12 {
		t.Errorf("files looked at: %d and %d with 10 reservations, %d and %d with 5000", a10, r10, a5000, r5000)
	}
	// Where a long run is taken, names are read once instead of asking for one after the other.
	dir := t.TempDir()
	fill(t, dir, 5000)
	put(t, dir, lastName+"0", "10.0.0.1")
	if _, err := open(dir).Allocate(pod2, wide(t)); err != nil {
		t.Fatal(err)
	}
	put(t, dir, lastName+"0", "10.0.0.1")
	s := open(dir)
	leases, err := s.Allocate(pod1, wide(t))
	if err != nil || addrs(leases) != "10.0.19.139" || s.looked > 5000+2*mostProbes { // put has changed the folder: read once
		t.Errorf("%v, %v, %d files looked at", leases, err, s.looked)
	}
}

// TestIndexKnowsWhatOthersDid: reservations that host-local or a person made and removed count, whatever the index says.
func TestIndexKnowsWhatOthersDid(t *testing.T) {
	dir := t.TempDir()
	s := open(dir)
	if _, err := s.Allocate(pod1, dual(t)); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "10.244.1.3", pod2.encode())
	if held, err := s.Held(pod2); err != nil || len(held) != 1 {
		t.Errorf("CHECK of a reservation of host-local: %v, %v", held, err)
	}
	if freed, err := s.Release(pod2); err != nil || len(freed) != 1 {
		t.Errorf("DEL of a reservation of host-local: %v, %v", freed, err)
	}
	if err := os.Remove(filepath.Join(dir, "braid", "10.244.1.2")); err != nil {
		t.Fatal(err)
	}
	if freed, err := s.Release(pod1); err != nil || fmt.Sprint(freed) != "[fd00:10:244:1::2]" {
		t.Errorf("DEL after somebody removed one of two: %v, %v", freed, err)
	}
	// Taken over by hand: the index still has it as the first owner's.
	if _, err := s.Allocate(pod1, dual(t)); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "10.244.1.4", pod2.encode())
	stamp, err := os.ReadFile(filepath.Join(dir, "braid", ownersName, stampName))
	if err != nil || len(stamp) == 0 {
		t.Fatalf("stamp %q, %v", stamp, err)
	}
	s.stamp() // as if that had been within one tick of the clock
	held, err := s.Held(pod1)
	for _, a := range held {
		if a.String() == "10.244.1.4" {
			t.Errorf("%v is held by %v", a, s.ownerOf(a))
		}
	}
	if err != nil {
		t.Error(err)
	}
}

// TestIndexThatCannotBeKept costs time, never an address.
func TestIndexThatCannotBeKept(t *testing.T) {
	for _, damage := range []func(owners string) error{
		os.RemoveAll,
		func(owners string) error { return os.WriteFile(filepath.Join(owners, stampName), nil, 0o600) },
		func(owners string) error {
			return os.WriteFile(filepath.Join(owners, stampName), []byte("another boot 0\n"), 0o600)
		},
		func(owners string) error {
			files, err := filepath.Glob(filepath.Join(owners, "*"))
			for _, f := range files {
				if filepath.Base(f) != stampName {
					err = os.WriteFile(f, []byte("\x00\x00not an address"), 0o600)
				}
			}
			_ = os.Remove(filepath.Join(owners, stampName))
			return err
		},
	} {
		dir := t.TempDir()
		if _, err := open(dir).Allocate(pod1, dual(t)); err != nil {
			t.Fatal(err)
		}
		if err := damage(filepath.Join(dir, "braid", ownersName)); err != nil {
			t.Fatal(err)
		}
		if _, err := open(dir).Allocate(pod1, dual(t)); err == nil {
			t.Error("a second ADD was not refused")
		}
		if freed, err := open(dir).Release(pod1); err != nil || len(freed) != 2 {
			t.Errorf("%v, %v", freed, err)
		}
		if held, _ := files(t, dir); len(held) > 0 {
			t.Errorf("left %v", held)
		}
	}
}

// BenchmarkAllocate reserves and gives back one address in a folder with that many others.
func BenchmarkAllocate(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("reserved=%d", n), func(b *testing.B) {
			dir := b.TempDir()
			fill(b, dir, n)
			sets := wide(b)
			if _, err := open(dir).Allocate(pod2, sets); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				s := open(dir)
				if _, err := s.Allocate(pod1, sets); err != nil {
					b.Fatal(err)
				}
				if _, err := open(dir).Release(pod1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
