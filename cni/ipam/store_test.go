package ipam

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

var (
	pod1 = Owner{"pod1", "eth0"}
	pod2 = Owner{"pod2", "eth0"}
)

func dual(t testing.TB) []Set {
	return []Set{{mustRange(t, "10.244.1.0/24", "", "", "")}, {mustRange(t, "fd00:10:244:1::/64", "", "", "")}}
}

func open(dir string) *Store { return Open(dir, "braid", slog.New(slog.DiscardHandler)) }

// files reads the folder without the store: reservations and the rest apart.
func files(t testing.TB, dir string) (held, other map[string]string) {
	t.Helper()
	held, other = map[string]string{}, map[string]string{}
	entries, err := os.ReadDir(filepath.Join(dir, "braid"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == ownersName {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, "braid", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			held[e.Name()] = string(data)
		} else {
			other[e.Name()] = string(data)
		}
	}
	return held, other
}

func put(t testing.TB, dir, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "braid"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "braid", name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func addrs(leases []Lease) string {
	var list []string
	for _, l := range leases {
		list = append(list, l.Addr.String())
	}
	return strings.Join(list, " ")
}

func TestLayoutIsThatOfHostLocal(t *testing.T) {
	dir := t.TempDir()
	s := open(dir)
	leases, err := s.Allocate(pod1, dual(t))
	if err != nil {
		t.Fatal(err)
	}
	if got := addrs(leases); got != "10.244.1.2 fd00:10:244:1::2" {
		t.Errorf("leases %s", got)
	}
	if l := leases[1]; l.Gateway != addr("fd00:10:244:1::1") || l.Subnet.String() != "fd00:10:244:1::/64" {
		t.Errorf("lease %v", l)
	}
	held, other := files(t, dir)
	if want := map[string]string{"10.244.1.2": "pod1\r\neth0", "fd00:10:244:1::2": "pod1\r\neth0"}; !maps.Equal(held, want) {
		t.Errorf("reservations %q, want %q", held, want)
	}
	if want := map[string]string{"last_reserved_ip.0": "10.244.1.2", "last_reserved_ip.1": "fd00:10:244:1::2", "lock": ""}; !maps.Equal(other, want) {
		t.Errorf("other files %q, want %q", other, want)
	}
}

func TestReadsWhatHostLocalLeft(t *testing.T) {
	dir := t.TempDir()
	old := strings.Repeat("0123456789abcdef", 4)
	put(t, dir, "10.244.1.2", "other\r\neth0")
	put(t, dir, "10.244.1.3", old)
	put(t, dir, "last_reserved_ip.0", "10.244.1.1")
	s := open(dir)
	leases, err := s.Allocate(pod1, dual(t)[:1])
	if err != nil || addrs(leases) != "10.244.1.4" {
		t.Errorf("leases %v, %v", leases, err)
	}
	if freed, err := s.Release(Owner{old, "net1"}); err != nil || len(freed) != 1 {
		t.Errorf("release of a reservation without an interface name: %v, %v", freed, err)
	}
}

func TestSecondAllocateIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(dir)
	if _, err := s.Allocate(pod1, dual(t)); err != nil {
		t.Fatal(err)
	}
	before, _ := files(t, dir)
	if _, err := s.Allocate(pod1, dual(t)); !errors.Is(err, ErrHeld) {
		t.Errorf("second Allocate: %v", err)
	}
	if after, _ := files(t, dir); !maps.Equal(before, after) {
		t.Errorf("a refused Allocate changed %q to %q", before, after)
	}
	if _, err := s.Allocate(Owner{"pod1", "net1"}, dual(t)); err != nil {
		t.Errorf("another interface of the container: %v", err)
	}
}

func TestReleaseIsIdempotent(t *testing.T) {
	dir := t.TempDir()
	s := open(dir)
	if freed, err := s.Release(pod1); err != nil || freed != nil {
		t.Errorf("release without a folder: %v, %v", freed, err)
	}
	for _, o := range []Owner{pod1, pod2} {
		if _, err := s.Allocate(o, dual(t)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{2, 0} {
		if freed, err := s.Release(pod1); err != nil || len(freed) != want {
			t.Errorf("release: %v, %v; want %d addresses", freed, err, want)
		}
	}
	if held, err := s.Held(pod2); err != nil || len(held) != 2 {
		t.Errorf("the other pod holds %v, %v", held, err)
	}
}

func TestExhaustionSaysHowManyAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(dir)
	sets := []Set{dual(t)[1], {mustRange(t, "10.0.0.0/29", "", "", "")}}
	for i := range 5 {
		if _, err := s.Allocate(Owner{"full" + strconv.Itoa(i), "eth0"}, sets); err != nil {
			t.Fatal(err)
		}
	}
	before, _ := files(t, dir)
	_, err := s.Allocate(pod1, sets)
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "10.0.0.1-10.0.0.6: 5 of 5 in use") {
		t.Errorf("got %v", err)
	}
	if after, _ := files(t, dir); !maps.Equal(before, after) {
		t.Errorf("left behind: %q, before %q", after, before)
	}
}

func TestTornReservationsAreFreeAgain(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "zeros": "\x00\x00\x00\x00", "half an id": "0123456789abcdef", "no interface": "pod9\r\n",
		"zeros behind": "pod9\r\neth\x00",
	} {
		dir := t.TempDir()
		put(t, dir, "10.244.1.2", content)
		var logged bytes.Buffer
		s := Open(dir, "braid", slog.New(slog.NewTextHandler(&logged, nil)))
		leases, err := s.Allocate(pod1, dual(t)[:1])
		if err != nil || addrs(leases) != "10.244.1.2" {
			t.Errorf("%s: %v, %v", name, leases, err)
		}
		if !strings.Contains(logged.String(), "10.244.1.2") {
			t.Errorf("%s: the log does not name the file: %s", name, logged.String())
		}
	}
}

func TestUnreadableReservationStaysInUse(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "braid", "10.244.1.2"), 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "last_reserved_ip.0", "10.244.")
	leases, err := open(dir).Allocate(pod1, dual(t)[:1])
	if err != nil || addrs(leases) != "10.244.1.3" {
		t.Errorf("%v, %v", leases, err)
	}
}

// TestStoreAgainstNaiveModel drives a small range through random ADDs and
// DELs by a fresh Store each time, as separate processes would.
func TestStoreAgainstNaiveModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	dir := t.TempDir()
	sets := []Set{{mustRange(t, "10.0.0.0/29", "", "", "")}, {mustRange(t, "fd00::/125", "", "fd00::4", "")}}
	model := map[string]map[netip.Addr]bool{} // owner → addresses
	taken := []map[netip.Addr]bool{{addr("10.0.0.1"): true}, {addr("fd00::1"): true}}
	last := []netip.Addr{{}, {}}
	for step := range 600 {
		o := Owner{"pod" + strconv.Itoa(rng.IntN(7)), "eth0"}
		if rng.IntN(2) == 0 {
			freed, err := open(dir).Release(o)
			if err != nil || len(freed) != len(model[o.String()]) {
				t.Fatalf("step %d: release %s: %v, %v; the model has %v", step, o, freed, err, model[o.String()])
			}
			for _, a := range freed {
				delete(taken[0], a)
				delete(taken[1], a)
			}
			delete(model, o.String())
			continue
		}
		var want []string
		for i, set := range sets {
			if a := naivePick(set, last[i], taken[i]); a.IsValid() {
				want = append(want, a.String())
			}
		}
		leases, err := open(dir).Allocate(o, sets)
		switch {
		case model[o.String()] != nil:
			if !errors.Is(err, ErrHeld) {
				t.Fatalf("step %d: %s has addresses, Allocate said %v", step, o, err)
			}
		case len(want) < len(sets):
			if !errors.Is(err, ErrExhausted) {
				t.Fatalf("step %d: the model is full, Allocate said %v, %v", step, leases, err)
			}
		case err != nil || addrs(leases) != strings.Join(want, " "):
			t.Fatalf("step %d: %v, %v; the model says %v", step, leases, err, want)
		default:
			model[o.String()] = map[netip.Addr]bool{}
			for i, l := range leases {
				model[o.String()][l.Addr], taken[i][l.Addr], last[i] = true, true, l.Addr
			}
		}
	}
}

func TestConcurrentAllocationsAreDistinct(t *testing.T) {
	dir := t.TempDir()
	sets := dual(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[netip.Addr]int{}
	for i := range 100 {
		wg.Go(func() {
			leases, err := open(dir).Allocate(Owner{"pod" + strconv.Itoa(i), "eth0"}, sets)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, l := range leases {
				seen[l.Addr]++
			}
		})
	}
	wg.Wait()
	if len(seen) != 200 {
		t.Errorf("%d distinct addresses, want 200", len(seen))
	}
	if held, _ := files(t, dir); len(held) != 200 {
		t.Errorf("%d files, want 200", len(held))
	}
}

// errAt makes the n-th step fail and says whether it was reached.
func errAt(s *Store, n int) (reached *bool) {
	reached = new(bool)
	s.fault = func(step string) error {
		if n--; n != 0 {
			return nil
		}
		*reached = true
		return fmt.Errorf("no space left at %s", step)
	}
	return reached
}

func TestFailureAtEveryStepLeavesNothing(t *testing.T) {
	for n := 1; ; n++ {
		dir := t.TempDir()
		s := open(dir)
		if _, err := s.Allocate(pod2, dual(t)); err != nil {
			t.Fatal(err)
		}
		before, _ := files(t, dir)
		reached := errAt(s, n)
		_, err := s.Allocate(pod1, dual(t))
		if !*reached {
			if err != nil || n < 10 {
				t.Errorf("only %d steps, %v", n-1, err)
			}
			return
		}
		after, other := files(t, dir)
		if _, unfinished := other[newName]; err == nil || unfinished || !maps.Equal(before, after) {
			t.Errorf("step %d: error %v, left %q %q", n, err, after, slices.Collect(maps.Keys(other)))
		}
	}
}

// TestMain lets the test binary play a plugin that is killed at a step.
func TestMain(m *testing.M) {
	if dir := os.Getenv("IPAM_TEST_DIR"); dir != "" {
		n, _ := strconv.Atoi(os.Getenv("IPAM_TEST_STEP"))
		s := open(dir)
		s.fault = func(string) error {
			if n--; n == 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
			return nil
		}
		var t testing.T
		var err error
		if os.Getenv("IPAM_TEST_VERB") == "release" {
			_, err = s.Release(pod1)
		} else {
			_, err = s.Allocate(pod1, dual(&t))
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runUntilStep runs a verb in a process of its own that dies at step n, and
// says whether it lived to the end.
func runUntilStep(t *testing.T, dir, verb string, n int) (finished bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "IPAM_TEST_DIR="+dir, "IPAM_TEST_VERB="+verb, "IPAM_TEST_STEP="+strconv.Itoa(n))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL) {
		t.Fatalf("%s: %v: %s", verb, err, out)
	}
	return err == nil
}

func TestKillAtEveryStepLeavesNothingThatReleaseDoesNotFree(t *testing.T) {
	for _, verb := range []string{"allocate", "release"} {
		for n := 1; ; n++ {
			dir := t.TempDir()
			s := open(dir)
			if _, err := s.Allocate(pod2, dual(t)); err != nil {
				t.Fatal(err)
			}
			before, _ := files(t, dir)
			if verb == "release" {
				if _, err := s.Allocate(pod1, dual(t)); err != nil {
					t.Fatal(err)
				}
			}
			finished := runUntilStep(t, dir, verb, n)
			if _, err := s.Release(pod1); err != nil {
				t.Errorf("%s killed at step %d: release: %v", verb, n, err)
			}
			after, other := files(t, dir)
			if _, unfinished := other[newName]; unfinished || !maps.Equal(before, after) {
				t.Errorf("%s killed at step %d: left %q and %q, before %q", verb, n, after, other, before)
			}
			if leases, err := s.Allocate(pod1, dual(t)); err != nil || len(leases) != 2 {
				t.Errorf("%s killed at step %d: the next allocation: %v, %v", verb, n, leases, err)
			}
			if finished {
				if n < 4 {
					t.Errorf("%s has only %d steps", verb, n-1)
				}
				break
			}
		}
	}
}
