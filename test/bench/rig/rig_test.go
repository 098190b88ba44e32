package rig

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/braidnet/braid/internal/kernel/netns"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

func TestPercentile(t *testing.T) {
	var list []time.Duration
	for i := 100; i >= 1; i-- {
		list = append(list, time.Duration(i))
	}
	for p, want := range map[int]time.Duration{0: 1, 50: 50, 99: 99, 100: 100} {
		if got := Percentile(list, p); got != want {
			t.Errorf("p%d of 1…100 is %d, want %d", p, got, want)
		}
	}
	if got := Percentile(list[:3], 99); got != 100 {
		t.Errorf("p99 of three values is %d, want the highest", got)
	}
	if got := Percentile([]float64(nil), 50); got != 0 {
		t.Errorf("p50 of nothing is %v", got)
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1234 * time.Nanosecond: "1.23 µs", 123456 * time.Microsecond: "123 ms", 2 * time.Second: "2 s", 1234567 * time.Millisecond: "1235 s",
	} {
		if got := Short(d); got != want {
			t.Errorf("%v is %q, want %q", d, got, want)
		}
	}
}

func TestFacts(t *testing.T) {
	got := Facts("no-such-program")
	for _, want := range []string{"UTC; Linux ", " processors; load average at the start "} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
}

// TestNamespaces: two namespaces that are joined reach each other, and all addresses that one answers for.
func TestNamespaces(t *testing.T) {
	nstest.RequireRoot(t)
	var a, b *netns.NS
	err := Namespaces(&a, &b)
	defer func() { Close(a, b) }()
	if err != nil {
		t.Fatal(err)
	}
	here, there, all := netip.MustParsePrefix("10.1.0.1/24"), netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("10.1.0.128/25")
	err = errors.Join(Join(a, "wire", b), a.Do(Router),
		a.Do(func() error { return errors.Join(Address("wire", here), Up("wire")) }),
		b.Do(func() error { return errors.Join(Address("eth0", there), Up("eth0"), AnswerFor(all)) }))
	if err != nil {
		t.Fatal(err)
	}
	// Nobody listens, so the other side refuses: it is the one that is meant.
	for _, to := range []netip.Addr{there.Addr(), Offset(all, 7)} {
		err := a.Do(func() error {
			_, err := Connect(here.Addr(), netip.AddrPortFrom(to, 80), 30*time.Second)
			return err
		})
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s: %v, want a refusal", to, err)
		}
	}
	api, err := API(b)
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	at := netip.MustParseAddrPort(strings.TrimPrefix(api.URL(), "http://"))
	if err := b.Do(func() error { _, err := Connect(netip.IPv4Unspecified(), at, 30*time.Second); return err }); err != nil {
		t.Errorf("the API server: %v", err)
	}
	if err := a.Do(func() error { _, err := Connect(netip.IPv4Unspecified(), at, 30*time.Second); return err }); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the API server from elsewhere: %v, want a refusal", err)
	}
}
