package link

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestMarkIsReadBack(t *testing.T) {
	addrs := []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00:10:244:1::5")}
	for text, m := range map[string]Mark{
		"default/web-0 bridge=braid0": {Pod: "default/web-0", Bridge: "braid0"},
		"bridge=cni0":                 {Bridge: "cni0"},
		"default/web-0 routed=10.244.1.5,fd00:10:244:1::5": {Pod: "default/web-0", Addrs: addrs},
		"routed=10.244.1.5": {Addrs: addrs[:1]},
	} {
		if got := m.String(); got != text {
			t.Errorf("%+v is %q, want %q", m, got, text)
		}
		if got, ok := ParseMark(text); !ok || !reflect.DeepEqual(got, m) {
			t.Errorf("%q is %+v, %v", text, got, ok)
		}
	}
	long := Mark{Pod: strings.Repeat("n", 63) + "/" + strings.Repeat("p", 253), Addrs: addrs}
	got, ok := ParseMark(long.String())
	if len(long.String()) != mostAlias || !ok || !reflect.DeepEqual(got.Addrs, addrs) || !strings.HasPrefix(long.Pod, got.Pod) {
		t.Errorf("a long name: %q, %+v, %v", long, got, ok)
	}
	if m, ok := ParseMark("default/web-0"); !ok || m.Bridge != PodBridge {
		t.Errorf("a mark of before: %+v, %v", m, ok)
	}
	for _, alias := range []string{"", "uplink", "to the lab", "routed=", "routed=10.0.0", "a/b routed=x", "bridge=", "a/b c"} {
		if m, ok := ParseMark(alias); ok {
			t.Errorf("%q was taken for %+v", alias, m)
		}
	}
}
