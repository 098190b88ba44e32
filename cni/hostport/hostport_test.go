package hostport

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/braidnet/braid/cni/tables"
	"github.com/braidnet/braid/internal/desired"
)

func TestRulesFollowTheFamilies(t *testing.T) {
	four, six := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
	for _, c := range []struct {
		addr string
		pod  []netip.Addr
		want string
	}{
		{"", []netip.Addr{four, six}, "80/tcp → 10.0.0.2:8080, 80/tcp → [fd00::2]:8080"},
		{"", []netip.Addr{six}, "80/tcp → [fd00::2]:8080"},
		{"0.0.0.0", []netip.Addr{four, six}, "80/tcp → 10.0.0.2:8080"},
		{"::", []netip.Addr{four, six, six.Next()}, "80/tcp → [fd00::2]:8080"},
		{"192.0.2.1", []netip.Addr{six, four}, "192.0.2.1:80/tcp → 10.0.0.2:8080"},
		{"::1", []netip.Addr{four}, "host port [::1]:80/tcp: the pod has no address of that family, only [10.0.0.2]"},
		{"0.0.0.0", []netip.Addr{six}, "host port 0.0.0.0:80/tcp: the pod has no address of that family, only [fd00::2]"},
	} {
		m := Mapping{Host: Port{Protocol: TCP, Number: 80}, Container: 8080}
		if c.addr != "" {
			m.Host.Addr = netip.MustParseAddr(c.addr)
		}
		list, err := rules([]Mapping{m}, c.pod)
		var text []string
		for _, r := range list {
			text = append(text, r.host.String()+" → "+r.pod.String())
		}
		got := strings.Join(text, ", ")
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q for %v: %s, want %s", c.addr, c.pod, got, c.want)
		}
	}
}

// TestTheFirstMappingOfAPortCounts: what Kubernetes takes for two ports, without an address and of 0.0.0.0, is one.
func TestTheFirstMappingOfAPortCounts(t *testing.T) {
	pod := []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}
	any4 := Mapping{Host: Port{Addr: netip.IPv4Unspecified(), Protocol: TCP, Number: 80}, Container: 1}
	all := Mapping{Host: Port{Protocol: TCP, Number: 80}, Container: 2}
	for _, c := range []struct {
		mappings []Mapping
		want     string
	}{
		{[]Mapping{any4, all}, "[10.0.0.2:1 [fd00::2]:2]"},
		{[]Mapping{all, any4}, "[10.0.0.2:2 [fd00::2]:2]"},
	} {
		list, err := rules(c.mappings, pod)
		var got []netip.AddrPort
		for _, r := range list {
			got = append(got, r.pod)
		}
		if err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%v: %v %v, want %s", c.mappings, got, err, c.want)
		}
	}
}

// TestElementsAreReadBack: what is in the kernel says what it is for, whatever the names are.
func TestElementsAreReadBack(t *testing.T) {
	for range 1000 {
		f := Tables()[rand.IntN(2)].Family
		bytes := make([]byte, families[f].addr.Bytes*2)
		for i := range bytes {
			bytes[i] = byte(rand.IntN(256))
		}
		host, _ := netip.AddrFromSlice(bytes[:len(bytes)/2])
		pod, _ := netip.AddrFromSlice(bytes[len(bytes)/2:])
		r := rule{f, Port{host, []Protocol{TCP, UDP, SCTP}[rand.IntN(3)], uint16(rand.IntN(65536))}, netip.AddrPortFrom(pod, uint16(rand.IntN(65536)))}
		if rand.IntN(2) == 0 {
			r.host.Addr = netip.Addr{}
		}
		owner := tables.Owner{Link: "brd0123456789a", Pod: strings.Repeat("n", rand.IntN(64)) + "/" + strings.Repeat("p", rand.IntN(254))}
		e := r.element(owner)
		if got, ok := parse(f, e); !ok || got != r {
			t.Fatalf("%+v became %+v", r, got)
		}
		if got := tables.OwnerOf(e); got.Link != owner.Link || !strings.HasPrefix(owner.Pod, got.Pod) || len(e.Comment) > 127 {
			t.Fatalf("owner %v became %v", owner, got)
		}
	}
	for _, e := range []desired.NFTElement{{Set: setHairpins, Key: "12345678"}, {Set: mapPorts, Key: "short"}, {Set: mapAddresses, Key: strings.Repeat("x", 12)}} {
		if r, ok := parse(desired.NFTIPv4, e); ok {
			t.Errorf("%+v was taken for %+v", e, r)
		}
	}
}
