package services

import (
	"strings"

	"sigs.k8s.io/yaml"
)

// yaml prints the cluster as manifests.
func (c *cluster) yaml() string {
	var b strings.Builder
	add := func(kind string, o any) {
		text, err := yaml.Marshal(o)
		if err != nil {
			panic(err)
		}
		b.WriteString("---\n# " + kind + "\n" + strings.ReplaceAll(string(text), "creationTimestamp: null\n", ""))
	}
	for _, s := range c.services {
		add("Service", s)
	}
	for _, s := range c.slices {
		add("EndpointSlice", s)
	}
	return b.String() + "# zone of the node: " + c.zone + "\n"
}
