package deploy

import (
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

// TestOverlayUDP runs the agent with component udp, out of the image and with no more rights than the
// component gives.
func TestOverlayUDP(t *testing.T) {
	requireBinaries(t)
	b := newBox(t)
	pod := &withComponent(t, b.objects, "udp").Spec.Template.Spec
	log, stop := b.start(t, pod, "netagent")
	agent := &pod.Containers[0]
	nstest.Wait(t, "the agent to be ready", func() error { return b.probe(agent, agent.ReadinessProbe) })
	b.found(t, pod, log, map[string]string{"overlay": "udp  setting overlay", "pod MTU": "1472  eth0 has 1500, less 28 for UDP over IPv4"})
	if routes := b.ns.Exec(t, "ip", "route"); !strings.Contains(routes, "10.244.2.0/24 via 10.244.2.0 dev braid.udp") {
		t.Errorf("routes:\n%s", routes)
	}
	if err := stop(); err != nil {
		t.Errorf("the agent ended with %v", err)
	}
	if links := b.ns.Exec(t, "ip", "link"); !strings.Contains(links, "braid.udp") {
		t.Errorf("the device went with the agent:\n%s", links)
	}
}
