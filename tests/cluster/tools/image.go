package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
)

const patience = 60 * time.Second

// newImageCommand waits until the kubelet's container engine knows an image. An import tells the engine alone, and
// its side that the kubelet asks hears of it a moment later.
func newImageCommand() *cobra.Command {
	return &cobra.Command{
		Use:          "image SOCKET NAME",
		Args:         cobra.ExactArgs(2),
		SilenceUsage: true,
		RunE: func(command *cobra.Command, words []string) error {
			service, err := cri.NewRemoteImageService(command.Context(), "unix://"+words[0], patience, nil, false)
			if err != nil {
				return err
			}
			wanted := &runtime.ImageSpec{Image: words[1]}
			for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				answer, err := service.ImageStatus(command.Context(), wanted, false)
				if err != nil {
					return err
				}
				if answer.Image != nil {
					return nil
				}
			}
			return fmt.Errorf("the container engine does not know %s after %s", words[1], patience)
		},
	}
}
